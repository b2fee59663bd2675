"""Is noise like quantization? Probes of `probe` beside the KL divergence of the tensors really quantized.

    python -m benchmarks.sensitivity.noise [MODEL ...] [--chunks 4] [-o benchmarks/results]

Every part of the model at three depths, once disturbed while the model runs and once quantized to IQ3_XXS in a copy
of it, everything else as stored, on the same windows of the calibration text. Prints a table of nats per unit of
relative error and their ratio, and the seconds that both took; writes noise.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from scipy.stats import spearmanr

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, Bench, trained_models
from benchmarks.sensitivity.scratch_copy import Scratch
from collab_plugin.engines.disturbance import Disturbance
from collab_plugin.engines.engine import Windows
from collab_plugin.planning.measure.error_shapes import error_shapes
from collab_plugin.planning.measure.groups import Group, coarse
from collab_plugin.planning.measure.measuring import default_ctx
from collab_plugin.planning.measure.probe import PROBE_ERROR
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.type_choices import possible
from collab_plugin.progress import untold
from collab_plugin.quantize.error import ErrorTable

TYPE = "IQ3_XXS"


@dataclass(frozen=True)
class Compared:
    """One group: nats per unit of relative error by noise and by quantizing."""

    model: str
    part: str
    first: str
    tensors: int
    noise: float
    quantized: float

    @property
    def ratio(self) -> float:
        return self.noise / self.quantized


def compare(bench: Bench, chunks: int) -> tuple[list[Compared], float, float]:
    """All groups, and the seconds that noise and quantizing took."""
    windows: dict[str, Any] = {"texts": bench.calibration, "chunks": chunks, "threads": bench.threads}
    planning = bench.planning(None)
    start = time.monotonic()
    groups = coarse(bench.checkpoint)
    by_noise = by_noising(bench, planning, groups, chunks)
    noise_seconds, start = time.monotonic() - start, time.monotonic()
    reference = bench.work / "noise.npy"
    cp.reference(bench.original, reference, **windows)
    scratch = Scratch(bench.checkpoint, planning.imatrix, bench.kernels, bench.work, bench.threads)
    table = ErrorTable(bench.checkpoint, {}, planning.imatrix, bench.kernels, bench.threads, untold)
    rows = []
    for group, noise in zip(groups, by_noise, strict=True):
        types = {n: possible(planning, bench.checkpoint.tensors[n], TYPE) for n in group.tensors}
        errors = table.measure({n: (k,) for n, k in types.items()})
        with scratch.quantized(types) as path:
            result = cp.evaluate(path, against=reference, **windows)
        quantized = result.mean_kld / sum(errors[n][k] for n, k in types.items())
        rows.append(Compared(bench.model.name, group.part, group.tensors[0], len(group.tensors), noise, quantized))
    return rows, noise_seconds, time.monotonic() - start


def by_noising(bench: Bench, planning: PlanningInput, groups: list[Group], chunks: int) -> list[float]:
    """Nats per unit of relative error of each group, by the noise that `probe` puts in."""
    names = [name for group in groups for name in group.tensors]
    shapes = error_shapes(bench.checkpoint, names, planning.imatrix, bench.threads, untold)
    found = LlamaCppEngine().disturb(
        bench.original,
        [Disturbance(errors=dict.fromkeys(group.tensors, PROBE_ERROR)) for group in groups],
        shapes,
        Windows(bench.calibration, default_ctx(planning.stats), chunks),
        threads=bench.threads,
        progress=untold,
    )
    return [
        effect.mean_kld / (PROBE_ERROR * len(group.tensors)) for effect, group in zip(found.each, groups, strict=True)
    ]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--chunks", type=int, default=4)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    rows: list[Compared] = []
    for model in a.models or trained_models():
        found, noise_seconds, seconds = compare(Bench(model, a.work / model.name, 24, a.threads), a.chunks)
        rows += found
        print("| model | group | tensors | noise | quantized | ratio |\n|---|---|---|---|---|---|")
        for row in found:
            print(
                f"| {row.model} | {row.part}, {row.first.removesuffix('.weight')} | {row.tensors} "
                f"| {row.noise:.4f} | {row.quantized:.4f} | {row.ratio:.2f} |"
            )
        ratios = [row.ratio for row in found]
        rank = spearmanr([row.noise for row in found], [row.quantized for row in found]).statistic
        spread = float(np.exp(np.median(np.abs(np.log(ratios)))))
        print(
            f"{model.name}: ratio {median(ratios):.2f}, typical factor {spread:.2f}, rank correlation {rank:.3f}, "
            f"{noise_seconds:.0f} s by noise, {seconds:.0f} s by quantizing",
            flush=True,
        )
    with (a.output / "noise.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "part", "first_tensor", "tensors", "noise", "quantized", "ratio"))
        for row in rows:
            figures = (f"{row.noise:.6f}", f"{row.quantized:.6f}", f"{row.ratio:.4f}")
            writer.writerow((row.model, row.part, row.first, row.tensors, *figures))


if __name__ == "__main__":
    main()
