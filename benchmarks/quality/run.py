"""Ours against its rivals at the same bytes or more, and without each of its parts.

    python -m benchmarks.quality.run [MODEL ...] [--bpw 2.0 2.5 3.0 3.5 4.5] [-o benchmarks/results]

Each model (by default the three trained ones) is calibrated on tests/texts/*.calibration.txt,
probed on it, and judged on *.validation.txt. Every row is a file that was built and run. Prints a
table; writes quality.csv, ablation.csv and quality.png. A row whose file was measured before (--work
keeps them) is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.quality.bench import Bench, Row, trained_models
from benchmarks.quality.plot import plot
from benchmarks.quality.rivals import RIVALS, pruned_preset

ROOT = Path(__file__).resolve().parents[2]
BPW = (2.0, 2.5, 3.0, 3.5, 4.5)
ABLATED = (2.0, 2.5, 3.5)
FIELDS = ("model", "budget_bpw", "variant", "detail", "bytes", "bpw", "mean_kld", "stderr", "ppl", "ppl_original",
          "same_top1", "tokens_per_second")  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--bpw", nargs="+", type=float, default=BPW)
    p.add_argument("--ablate", nargs="*", type=float, default=ABLATED)
    p.add_argument("--probe-tokens", type=int, help="by default twice those of the calibration")
    p.add_argument("--chunks", type=int, default=8)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    models = a.models or trained_models()
    rivals: list[Row] = []
    ablations: list[Row] = []
    for model in models:
        bench = Bench(model, a.work / model.name, a.chunks, a.threads, a.probe_tokens)
        for bpw in a.bpw:
            for make in (*RIVALS, pruned_preset, ours, bits_only):
                rivals += tell(make(bench, bpw))
        for bpw in a.ablate:
            ablations += tell([dataclasses.replace(r, variant="all parts") for r in ours(bench, bpw)])
            for without in ABLATIONS:
                ablations += tell(without(bench, bpw))
    a.output.mkdir(parents=True, exist_ok=True)
    write(a.output / "quality.csv", rivals)
    write(a.output / "ablation.csv", ablations)
    plot(rivals, a.output / "quality.png")


def tell(rows: list[Row]) -> list[Row]:
    for r in rows:
        print(
            f"{r.model:18} {r.budget_bpw:4.1f} {r.variant:32} {r.detail:40} {r.bytes:11,} {r.bpw:6.3f} "
            f"{r.mean_kld:.4f} ±{r.stderr:.4f} ppl {r.ppl:7.3f} top-1 {r.same_top1:.1%} "
            f"{r.tokens_per_second:5.0f} tok/s",
            flush=True,
        )
    return rows


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for row in rows:
            writer.writerow(getattr(row, name) for name in FIELDS)


# -- ours, and ours without a part


def ours(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("ours", bpw, experts_used="auto", confirm=3)


def bits_only(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("bits only (keep 100 %)", bpw, keep="100%")


def unprobed(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("without probes (default weights)", bpw, experts_used="auto", probed=False)


def unweighted(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("without sensitivity (error alone)", bpw, keep="100%", allocator="error-alone")


def unconfirmed(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("without confirmation", bpw, experts_used="auto")


def uniform(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("without mixed types (uniform)", bpw, keep="100%", allocator="uniform")


def scaled(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("keep 75 %, k scaled", bpw, keep="75%")


def unscaled(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("keep 75 %, k as it was", bpw, keep="75%", experts_used=bench.topology.experts_used)


def mass(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("keep 75 %, k as it was, by mass", bpw, keep="75%", criterion="mass",
                         experts_used=bench.topology.experts_used)  # fmt: skip


def reap(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("keep 75 %, k as it was, by REAP", bpw, keep="75%", criterion="reap",
                         experts_used=bench.topology.experts_used)  # fmt: skip


def unborrowed(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("without borrowed importance", bpw, keep="100%", borrow=0.0)


def heat(bench: Bench, bpw: float) -> list[Row]:
    return bench.planned("experts in order of heat", bpw, keep="100%", order="importance")


ABLATIONS: tuple[Callable[[Bench, float], list[Row]], ...] = (
    bits_only, unconfirmed, unprobed, unweighted, uniform, unborrowed, heat, scaled, unscaled, mass, reap,
)  # fmt: skip

if __name__ == "__main__":
    main()
