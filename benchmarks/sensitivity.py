"""How much one role's quantization moves the output: KL divergence a unit of relative error.

    python benchmarks/sensitivity.py tests/models/tiny-qwen3moe [--type IQ3_S] [--chunks 6]

Everything stays as stored but one role, which gets TYPE; the figures behind quant/cost.py's weights.
Prints a table: role, tensors, mean relative error, KL divergence, KL divergence / sum of errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

from collab_plugin.checkpoint.open import open_checkpoint
from collab_plugin.checkpoint.roles import Role
from collab_plugin.compress.copy_plan import copy_plan
from collab_plugin.compress.executor import compress
from collab_plugin.compress.materialise import as_gguf
from collab_plugin.manager import first_kernels, registry
from collab_plugin.plan import TensorPlan
from collab_plugin.quant.error import measure_errors
from collab_plugin.quant.types import fallback, quantizable, tensor_bytes, without_imatrix

ROOT = Path(__file__).resolve().parents[1]


def quiet(done: float, total: float | None = None) -> None:
    """Report nothing."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", type=Path)
    p.add_argument("--type", default="IQ3_S")
    p.add_argument("--chunks", type=int, default=6)
    p.add_argument("--by-layer", action="store_true", help="one row a layer and role")
    a = p.parse_args()
    threads = os.cpu_count() or 1
    engine, kernels, checkpoint = registry().engines["llamacpp"], first_kernels(), open_checkpoint(a.model)
    texts = [ROOT / "tests" / "texts" / f"{d}.calibration.txt" for d in ("english", "german", "python")]
    original = as_gguf(a.model, threads)
    options = {"ctx": 512, "chunks": a.chunks, "threads": threads, "progress": quiet}
    stats = engine.calibrate(original, texts, **options)
    plan = copy_plan(checkpoint)
    parts: dict[tuple[Role, int | None, str], list[str]] = {}
    for name, info in checkpoint.tensors.items():
        if quantizable(info):
            kind = name.split(".")[-2] if info.role == Role.EXPERT else ""
            parts.setdefault((info.role, info.layer if a.by_layer else None, kind), []).append(name)
    print("| role | layer | tensors | mean error | mean KLD | KLD / sum of errors |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.gguf"
        for (role, layer, kind), names in parts.items():
            types = {
                n: fallback(a.type if n in stats.imatrix else without_imatrix(a.type), checkpoint.tensors[n].shape[-1])
                for n in names
            }
            errors = measure_errors(checkpoint, {n: (t,) for n, t in types.items()}, {}, stats, kernels, threads, quiet)
            tensors = {n: TensorPlan(t, tensor_bytes(t, checkpoint.tensors[n].shape), None) for n, t in types.items()}
            variant = dataclasses.replace(plan, tensors={**plan.tensors, **tensors})
            compress(checkpoint, variant, stats, out, kernels=kernels, threads=threads, report=quiet)
            kld = engine.evaluate(out, original, texts, **options).mean_kld
            total = sum(errors[n][t] for n, t in types.items())
            where = "all" if layer is None else str(layer)
            print(
                f"| {role} {kind} | {where} | {len(names)} | {total / len(names):.5f} | {kld:.6f} "
                f"| {kld / total:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
