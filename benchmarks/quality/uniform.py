"""KL divergence of one type for all tensors, for the cards of the trained models.

    python -m benchmarks.quality.uniform tests/models/tiny-qwen3moe [--domain python] [--chunks 12]

Calibrated on the domain's calibration text, judged on its validation text. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str | Path) -> dict[str, float]:
    command = [str(Path(sys.executable).parent / "collab-plugin"), *map(str, arguments), "--json"]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", type=Path)
    p.add_argument("--domain", default="python")
    p.add_argument("--chunks", default="12")
    p.add_argument("--types", nargs="+", default=["IQ1_S", "IQ2_XXS", "Q2_K", "IQ3_S", "Q4_K"])
    p.add_argument("--llama-quantize", type=Path, help="that program: adds a row for its Q4_K_M preset")
    a = p.parse_args()
    texts = ROOT / "tests" / "texts"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stats, plan, out = folder / "stats.gguf", folder / "plan.json", folder / "out.gguf"
        call("calibrate", a.model, "--text", texts / f"{a.domain}.calibration.txt", "--chunks", "40", "-o", stats)
        print("| type | bytes | bpw | mean KLD | same top-1 | perplexity |\n|---|---|---|---|---|---|")
        for kind in a.types:
            made = call(
                "plan", a.model, "--stats", stats, "--budget", "16bpw", "--types", kind, "--allocator", "uniform",
                "-o", plan,
            )  # fmt: skip
            call("compress", a.model, "--plan", plan, "-o", out)
            validation = texts / f"{a.domain}.validation.txt"
            e = call("evaluate", out, "--against", a.model, "--text", validation, "--chunks", a.chunks)
            print(
                f"| {kind} | {made['bytes']:,} | {made['bits_per_weight']:.3f} | {e['mean_kld']:.4f} ± "
                f"{e['mean_kld_stderr']:.4f} | {e['same_top1']:.1%} | {e['ppl']:.2f} "
                f"(original {e['ppl_original']:.2f}) |",
                flush=True,
            )
        if a.llama_quantize:
            preset(a, folder, stats)


def preset(a: argparse.Namespace, folder: Path, stats: Path) -> None:
    """A row for llama-quantize's Q4_K_M of the same values with the same importance matrix."""
    from collab_plugin.compression.as_gguf import as_gguf
    from collab_plugin.plugins.open_checkpoint import open_checkpoint

    out = folder / "q4_k_m.gguf"
    source = as_gguf(open_checkpoint(a.model), 2)
    command = [a.llama_quantize, "--imatrix", stats, source, out, "Q4_K_M"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    validation = ROOT / "tests" / "texts" / f"{a.domain}.validation.txt"
    e = call("evaluate", out, "--against", a.model, "--text", validation, "--chunks", a.chunks)
    size, bits = out.stat().st_size, out.stat().st_size / source.stat().st_size * 16
    print(
        f"| llama-quantize Q4_K_M | {size:,} | about {bits:.2f} | {e['mean_kld']:.4f} ± {e['mean_kld_stderr']:.4f} | "
        f"{e['same_top1']:.1%} | {e['ppl']:.2f} (original {e['ppl_original']:.2f}) |"
    )


if __name__ == "__main__":
    main()
