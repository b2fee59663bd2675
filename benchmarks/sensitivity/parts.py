"""Which weights are wrong? What the law and the probes say of each part, beside what quantizing that part costs.

    python -m benchmarks.sensitivity.parts MODEL ... [--type IQ3_XXS] [--chunks 3] [-o benchmarks/results]

Every part of the model at three depths is quantized by itself in a copy of it, everything else as stored, and measured
on the validation text. Prints a table in nats; writes parts.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, Bench
from benchmarks.sensitivity.scratch_copy import Scratch
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.measure.groups import coarse
from collab_plugin.planning.predictor import predictor_of
from collab_plugin.planning.type_choices import possible
from collab_plugin.progress import untold
from collab_plugin.quantize.error import ErrorTable


@dataclass(frozen=True)
class PartCost:
    """Nats of one group of tensors, quantized alone; ``error``: the sum of their relative errors."""

    model: str
    part: str
    first_tensor: str
    type: str
    error: float
    measured: float
    law: float
    probed: float


def costs(bench: Bench, kind: str, chunks: int) -> Iterator[PartCost]:
    planning = bench.planning(None)
    law = predictor_of(Candidates(planning)).weights
    probed = predictor_of(Candidates(bench.planning(bench.sensitivity))).weights
    windows: dict[str, Any] = {
        "texts": bench.validation, "ctx": bench.ctx, "chunks": -(-chunks * 512 // bench.ctx), "threads": bench.threads,
    }  # fmt: skip
    reference = bench.work / "parts.npy"
    cp.reference(bench.original, reference, **windows)
    scratch = Scratch(bench.checkpoint, planning.imatrix, bench.kernels, bench.work, bench.threads)
    table = ErrorTable(bench.checkpoint, {}, planning.imatrix, bench.kernels, bench.threads, untold)
    for group in coarse(bench.checkpoint):
        types = {n: possible(planning, bench.checkpoint.tensors[n], kind) for n in group.tensors}
        errors = {n: by[types[n]] for n, by in table.measure({n: (k,) for n, k in types.items()}).items() if n in types}
        with scratch.quantized(types) as path:
            measured = cp.evaluate(path, against=reference, **windows).mean_kld
        yield PartCost(
            bench.model.name, group.part, group.tensors[0], kind, sum(errors.values()), measured,
            sum(law[n] * e for n, e in errors.items()), sum(probed[n] * e for n, e in errors.items()),
        )  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", type=Path)
    p.add_argument("--type", default="IQ3_XXS")
    p.add_argument("--chunks", type=int, default=3, help="windows of 512 tokens of each text, or as many tokens")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    print("| model | part | measured | law / measured | probed / measured |\n|---|---|---|---|---|")
    with (a.output / "parts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in fields(PartCost))
        for model in a.models:
            for c in costs(Bench(model, a.work / model.name, a.chunks, a.threads), a.type, a.chunks):
                writer.writerow(astuple(c))
                print(
                    f"| {c.model} | {c.part}, {c.first_tensor.removesuffix('.weight')} | {c.measured:.4f} "
                    f"| {c.law / c.measured:.2f} | {c.probed / c.measured:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
