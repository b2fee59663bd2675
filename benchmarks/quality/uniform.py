"""KL divergence of one type for all tensors, for the cards of the trained models.

    python -m benchmarks.quality.uniform tests/models/tiny-qwen3moe [--domain python] [--chunks 12]

Calibrated on the domain's calibration text, judged on its validation text. Prints a table.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import collab_plugin as cp
from collab_plugin.compression.as_gguf import as_gguf

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", type=Path)
    p.add_argument("--domain", default="python")
    p.add_argument("--chunks", type=int, default=12)
    p.add_argument("--types", nargs="+", default=["IQ1_S", "IQ2_XXS", "Q2_K", "IQ3_S", "Q4_K"])
    p.add_argument("--llama-quantize", type=Path, help="that program: adds a row for its Q4_K_M preset")
    a = p.parse_args()
    texts = ROOT / "tests" / "texts"
    validation = texts / f"{a.domain}.validation.txt"
    with tempfile.TemporaryDirectory() as name:
        out, original = Path(name) / "out.gguf", Path(name) / "original.npy"
        stats = cp.calibrate(a.model, texts=texts / f"{a.domain}.calibration.txt", chunks=40)
        cp.reference(a.model, original, texts=validation, chunks=a.chunks)
        print("| type | bytes | bpw | mean KLD | same top-1 | perplexity |\n|---|---|---|---|---|---|")
        for kind in a.types:
            plan = cp.plan(a.model, stats=stats, budget="16bpw", types=kind, allocator="uniform")
            cp.compress(a.model, plan, out, stats=stats)
            e = cp.evaluate(out, against=original, texts=validation, chunks=a.chunks)
            print(row(kind, plan.bytes, f"{plan.bits_per_weight:.3f}", e), flush=True)
        if a.llama_quantize:
            source = preset(a.llama_quantize, a.model, stats, out)
            size = out.stat().st_size
            e = cp.evaluate(out, against=original, texts=validation, chunks=a.chunks)
            print(row("llama-quantize Q4_K_M", size, f"about {size / source.stat().st_size * 16:.2f}", e))


def row(name: str, size: int, bpw: str, e: cp.Evaluation) -> str:
    return (
        f"| {name} | {size:,} | {bpw} | {e.mean_kld:.4f} ± {e.mean_kld_stderr:.4f} | {e.same_top1:.1%} | "
        f"{e.ppl:.2f} (original {e.ppl_original:.2f}) |"
    )


def preset(program: Path, model: Path, stats: cp.Stats, out: Path) -> Path:
    """Write llama-quantize's Q4_K_M of the same values with the same importance matrix; returns what it was made of."""
    source, imatrix = as_gguf(cp.open_checkpoint(model), 2), out.with_name("stats.gguf")
    cp.write_stats(imatrix, stats)
    command = [program, "--imatrix", imatrix, source, out, "Q4_K_M"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return source


if __name__ == "__main__":
    main()
