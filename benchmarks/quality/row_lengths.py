"""What would rows gain that the kernel gives back as long as they were? Whole files of default plans, measured.

    python -m benchmarks.quality.row_lengths [--models NAME ...] [--bpw 2.0 3.5 ...] [--work /tmp/collab-quality]

Kernels give back rows that are shorter than what they got (method.md §4). Here each row w that comes back as q is
handed in once more, times Σ h w² / Σ h w q with h the importance of its columns, so that its length along w is right.
Beside it the same plan as it is. Prints a line a file; writes row_lengths.csv, where other models stay.
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, Bench, trained_models
from benchmarks.sensitivity.prunings import keep_others

F32 = NDArray[np.float32]
BPW = (1.5, 2.0, 2.5, 3.5, 4.5)
LEAST, MOST = 0.8, 1.5
"""Rows that the kernel made nothing of are left alone."""


class LongRows(GgmlKernels):
    """ggml's kernels, with rows that come back as long as they went in."""

    def quantize(self, values: F32, type_name: str, imatrix: F32 | None = None) -> NDArray[np.uint8]:
        data = super().quantize(values, type_name, imatrix)
        back = self.dequantize(data, type_name, values.shape[1])
        weights = np.ones(values.shape[1], np.float32) if imatrix is None else imatrix
        whole, along = np.square(values) @ weights, (values * back) @ weights
        factor = np.clip(whole / np.where(along > 0, along, np.inf), LEAST, MOST)
        return super().quantize(np.ascontiguousarray(values * factor[:, None], np.float32), type_name, imatrix)


@dataclass(frozen=True)
class Lengths:
    """Mean KL divergence, in nats, of one plan's file: ``plain`` and with ``long`` rows."""

    model: str
    bpw: float
    plain: float
    long: float
    stderr: float


def lengths(bench: Bench, bpw: float) -> Lengths:
    plan = cp.plan(
        bench.checkpoint, stats=bench.stats, budget=f"{bpw}bpw", kernels=bench.kernels, threads=bench.threads
    )
    found = []
    for kernels in (bench.kernels, LongRows()):
        out = bench.work / "lengths.gguf"
        cp.compress(bench.checkpoint, plan, out, stats=bench.stats, kernels=kernels, threads=bench.threads)
        found.append(bench.evaluated(out))
    plain, long = found
    return Lengths(bench.model.name, bpw, plain.mean_kld, long.mean_kld, long.mean_kld_stderr)


def main() -> None:
    models = {model.name: model for model in trained_models()}
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", choices=models, default=list(models), metavar="NAME")
    p.add_argument("--bpw", nargs="+", type=float, default=BPW)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    found = []
    for name in a.models:
        bench = Bench(models[name], a.work / name, 4, a.threads)
        for bpw in a.bpw:
            row = lengths(bench, bpw)
            found.append(row)
            ratio = row.long / row.plain
            print(f"| {name} | {bpw} | {row.plain:.4f} | {row.long:.4f} ± {row.stderr:.4f} | {ratio:.2f} |", flush=True)
    out = a.output / "row_lengths.csv"
    others = keep_others(out, set(a.models))
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in fields(Lengths))
        writer.writerows(others)
        writer.writerows(astuple(row) for row in found)


if __name__ == "__main__":
    main()
