"""Pruned files with and without repair: what fitting the kept experts gains.

    python -m benchmarks.quality.repair [MODEL ...] [--cases 75%@stored ...] [-o benchmarks/results]

A case is the share of experts kept and the bits per weight; "stored" keeps every type. Experts a token as they were,
sensitivities by default. Calibrated and sampled on the calibration texts, judged on the validation texts. Prints and
writes repair.csv, a row a case, as soon as it is measured.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, Bench, trained_models

CASES = ("75%@stored", "75%@2.0", "75%@1.5", "62.5%@1.25")
WINDOWS = 24
"""Of 512 tokens, of each calibration text: what is sampled."""
COLUMNS = ("model", "keep", "bpw", "experts", "kld", "kld_stderr", "repaired", "repaired_stderr")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--cases", nargs="+", default=CASES)
    p.add_argument("--chunks", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-repair"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    with (a.output / "repair.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for model in a.models or trained_models():
            for row in rows(Bench(model, a.work / model.name, a.chunks, a.threads), a.cases):
                writer.writerow((model.name, *row))
                file.flush()
                print(model.name, *row, flush=True)


def rows(bench: Bench, cases: Sequence[str]) -> Iterator[tuple[str, str, int, float, float, float, float]]:
    samples = bench.work / "samples.gguf"
    if not samples.exists():
        chunks = -(-WINDOWS * 512 // bench.ctx)
        cp.sample(bench.original, samples, texts=bench.calibration, ctx=bench.ctx, chunks=chunks, threads=bench.threads)
    for case in cases:
        keep, _, bpw = case.partition("@")
        found: list[float] = []
        for given in (None, samples):
            plan = cp.plan(
                bench.checkpoint, stats=bench.stats, samples=given, keep=keep, experts_used=bench.topology.experts_used,
                keep_types=bpw == "stored", budget=None if bpw == "stored" else f"{bpw}bpw", kernels=bench.kernels,
                threads=bench.threads,
            )  # fmt: skip
            out = bench.work / "out.gguf"
            cp.compress(bench.checkpoint, plan, out, stats=bench.stats, samples=given, kernels=bench.kernels,
                        threads=bench.threads)  # fmt: skip
            e = bench.evaluated(out)
            found += [e.mean_kld, e.mean_kld_stderr]
        yield keep, bpw, plan.pruning.expert_count, found[0], found[1], found[2], found[3]


if __name__ == "__main__":
    main()
