"""Ours against its rivals at the same bytes, and without each of its parts.

    python -m benchmarks.quality.run [--models NAME ...] [--bpw 1.25 2.0 ...] [--variants NAME ...]

Each model (by default all trained ones) is calibrated on tests/texts/*.calibration.txt, probed on it, and judged on
*.validation.txt. Every row is a file that was built and run. Prints the rows and what became of the goals; writes
quality.csv and quality.png, and with --ablate ablation.csv. A row that was measured before by the same sources is not
measured again (--work keeps them), and rows of the CSV files that a run leaves out stay in them, so that a run can be
a part of the whole: the column `version` is the commit that a row is of.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.quality.bench import ROOT, Bench, Row, trained_models
from benchmarks.quality.goals import table
from benchmarks.quality.plot import plot
from benchmarks.quality.rows import merged, read_rows, write_rows
from benchmarks.quality.variants import ABLATIONS, VARIANTS, Make

BPW = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.5)


def main() -> None:
    models = {path.name: path for path in trained_models()}
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", choices=models, default=list(models), metavar="NAME")
    p.add_argument("--bpw", nargs="+", type=float, default=BPW)
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    p.add_argument(
        "--ablate", nargs="+", type=float, default=(), metavar="BPW", help="without each part, at these sizes"
    )
    p.add_argument("--probe-tokens", type=int, help="by default twice those of the calibration")
    p.add_argument("--chunks", type=int, default=4, help="windows of 512 tokens of each text, or as many tokens")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    for name in a.models:
        bench = Bench(models[name], a.work / name, a.chunks, a.threads, a.probe_tokens)
        measure(bench, {v: VARIANTS[v] for v in a.variants}, a.bpw, a.output / "quality.csv")
        measure(bench, ABLATIONS, a.ablate, a.output / "ablation.csv")
    rows = read_rows(a.output / "quality.csv")
    plot(rows, a.output / "quality.png")
    print(table(rows))


def measure(bench: Bench, variants: Mapping[str, Make], sizes: Iterable[float], out: Path) -> None:
    """Each variant at each size; the file is written after each size."""
    for bpw in sizes:
        rows = [row for name, make in variants.items() for row in tell(make(bench, name, bpw))]
        write_rows(out, merged(read_rows(out), rows, {(bench.model.name, bpw, name) for name in variants}))


def tell(rows: list[Row]) -> list[Row]:
    for r in rows:
        print(
            f"{r.model:20} {r.budget_bpw:4.2f} {r.variant:34} {r.detail:44} {r.bytes:11,} {r.bpw:6.3f} "
            f"{r.mean_kld:.4f} ±{r.stderr:.4f} ppl {r.ppl:7.3f} top-1 {r.same_top1:.1%}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
