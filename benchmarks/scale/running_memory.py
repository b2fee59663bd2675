"""What `fit` reckons that running takes, beside what llama.cpp reports, and what small types of the KV cache cost.

    python -m benchmarks.scale.running_memory [--scratch FOLDER]

Models: both trained ones at their stored types, and a layer of DeepSeek-V3's widths with two experts at Q8_0 (128
heads, a latent of 576). For each context and type of the cache llama.cpp's own log tells the bytes of weights, KV cache
and compute buffer. Of the trained models the KL divergence against the same model with an f16 cache is measured on
held-out text, in windows of 512 tokens as `evaluate` has them. Goal: all three together within 3 %. Writes
running_memory.csv, prints a table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.throughput.wide_folder import write_wide
from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.compare_logits import Comparison, evaluation_of, scored_rows
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.text_windows import text_cut
from collab_plugin.formats.ggml_types import fallback, tensor_bytes
from collab_plugin.placement.artifact_shape import shape_of_checkpoint
from collab_plugin.placement.memory import memory_of
from collab_plugin.placement.run_setup import KvType, RunSetup
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import TensorPlan
from collab_plugin.plugins.manager import first_kernels
from collab_plugin.progress import untold

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ("tiny-qwen3moe", "tiny-deepseek-v3")
KINDS: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")
CONTEXTS = (2048, 8192)
CTX, CHUNKS = 512, 4
LOAD = """
import ctypes, sys, llama_cpp
@llama_cpp.llama_log_callback
def log(level, text, data):
    sys.stdout.buffer.write(text)
llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
options = llama_cpp.llama_model_default_params()
options.n_gpu_layers, options.use_extra_bufts = 0, False
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), options)
options = llama_cpp.llama_context_default_params()
options.n_ctx, options.n_threads = int(sys.argv[2]), 1
options.type_k = options.type_v = int(sys.argv[3])
assert llama_cpp.llama_init_from_model(model, options)
"""


@dataclasses.dataclass(frozen=True)
class Running:
    """Bytes of ``weights``, ``cache`` and ``compute`` buffer as reckoned, and as llama.cpp reports (``their_``).
    ``error``: of all three together. ``kld``: nats that the cache's type costs, None where it was not measured."""

    model: str
    kv_type: str
    context: int
    weights: int
    their_weights: int
    cache: int
    their_cache: int
    compute: int
    their_compute: int
    error: float
    kld: float | None


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scratch", type=Path, help="folder for the files")
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.scratch, prefix="collab-memory-") as name:
        rows = [row for model, path in _models(Path(name)) for row in _rows(model, path)]
    a.output.mkdir(parents=True, exist_ok=True)
    with (a.output / "running_memory.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in dataclasses.fields(Running))
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values()] for row in rows)
    Console(width=150).print(_table(rows))


def _models(scratch: Path) -> Iterator[tuple[str, Path]]:
    for name in TRAINED:
        yield name, _made(ROOT / "tests" / "models" / name, scratch / f"{name}.gguf", None)
    yield (
        "a layer of DeepSeek-V3's widths",
        _made(write_wide(scratch / "wide", experts=2), scratch / "wide.gguf", "Q8_0"),
    )


def _made(folder: Path, out: Path, kind: str | None) -> Path:
    """The folder as a GGUF, at its stored types or with every matrix at ``kind``."""
    checkpoint = open_safetensors(folder)
    plan = copy_plan(checkpoint)
    if kind is not None:
        kinds = {n: fallback(kind, i.shape[-1]) for n, i in checkpoint.tensors.items() if quantizable(i)}
        tensors = {n: TensorPlan(k, tensor_bytes(k, checkpoint.tensors[n].shape), None) for n, k in kinds.items()}
        plan = dataclasses.replace(plan, tensors={**plan.tensors, **tensors})
        plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    compress(checkpoint, plan, None, out, kernels=first_kernels(), threads=1, report=untold)
    return out


def _rows(model: str, path: Path) -> Iterator[Running]:
    shape = shape_of_checkpoint(open_gguf(path))
    for kind in KINDS:
        kld = _loss(path, kind) if model in TRAINED else None
        for context in CONTEXTS:
            memory = memory_of(shape, RunSetup(context=context, kv_type=kind), {})
            cache, compute = (part.bytes or 0 for part in memory.runtime[:2])
            theirs = _reported(path, context, kind)
            both = (shape.bytes + cache + compute) / sum(theirs) - 1
            yield Running(model, kind, context, shape.bytes, theirs[0], cache, theirs[1], compute, theirs[2], both, kld)


def _reported(path: Path, context: int, kind: str) -> tuple[int, int, int]:
    from gguf import GGMLQuantizationType

    command = [sys.executable, "-c", LOAD, str(path), str(context), str(GGMLQuantizationType[kind.upper()].value)]
    log = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout
    found = []
    for what in ("model", "KV", "compute"):
        sizes = re.findall(rf"CPU\w* +{what} buffer size = *([\d.]+) MiB", log)
        found.append(round(sum(map(float, sizes)) * 2**20))
    return found[0], found[1], found[2]


def _loss(path: Path, kind: KvType) -> float:
    """Mean KL divergence, in nats, of the model with a cache of ``kind`` from itself with one of f16."""
    if kind == "f16":
        return 0.0
    import ctypes

    import llama_cpp
    from collab_llamacpp.native.model import LoadedModel

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    text = ROOT / "tests" / "texts" / "english.validation.txt"
    cut = text_cut(Windows((text,), CTX, CHUNKS), open_gguf(path).metadata)
    found = Comparison()
    with (
        LoadedModel(path, ctx=CTX, threads=1) as original,
        LoadedModel(path, ctx=CTX, threads=1, kv_type=kind) as model,
    ):
        for window in original.windows(cut):
            following = window[scored_rows(CTX).start + 1 :]
            found.add(model.scored(window), original.scored(window), following)
    return evaluation_of(found.arrays(), CTX).mean_kld


def _table(rows: Sequence[Running]) -> Table:
    table = Table("model", "cache", "context", "weights", "KV cache", "compute", "error of all", "KL divergence")
    for r in rows:
        pairs = ((r.weights, r.their_weights), (r.cache, r.their_cache), (r.compute, r.their_compute))
        sizes = [f"{ours / 2**20:,.2f} / {theirs / 2**20:,.2f} MiB" for ours, theirs in pairs]
        kld = "" if r.kld is None else f"{r.kld:.2g}"
        table.add_row(r.model, r.kv_type, f"{r.context:,}", *sizes, f"{r.error:+.2%}", kld)
    return table


if __name__ == "__main__":
    main()
