"""Forecasts of speed against runs on this machine's processor.

    python -m benchmarks.placement.forecast [--threads 1] [--tokens 192] [--processor-time]

The trained models as they are, and skewed-qwen2moe with experts 8 times as wide (see larger_than_memory.py) as F16,
Q8_0, Q4_K and Q2_K, which no processor's caches hold. Each is placed with `--measure` in a memory that holds it, then
run; a run is the best of three, because other work on a machine only slows it. ``--processor-time``: tokens a second of
the processor's time, what a long run takes more of than a short one, for a machine with other work; with one thread.
Prints a table; writes placement_forecast.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.placement.larger_than_memory import MODEL, RESULTS, copy_of, widened
from benchmarks.quality.bench import ROOT
from benchmarks.vllm.load import write_csv
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import TensorPlan

TYPES = ("Q8_0", "Q4_K", "Q2_K")


def quantized(model: Path, kind: str, out: Path) -> Path:
    """``model`` with every matrix of experts at ``kind``."""
    checkpoint, plan = cp.open_checkpoint(model), copy_of(model)
    tensors = dict(plan.tensors)
    for name, info in checkpoint.tensors.items():
        if info.role == cp.Role.EXPERT:
            tensors[name] = TensorPlan(kind, tensor_bytes(kind, info.shape), None)
    plan = dataclasses.replace(plan, tensors=tensors)
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    cp.compress(checkpoint, plan, out, threads=1)
    return out


def wall_speed(model: Path, tokens: int, threads: int) -> float:
    return cp.run(model, "And", max_tokens=tokens, ctx=256, threads=threads).tokens_per_second


def processor_speed(model: Path, tokens: int, threads: int) -> float:
    """Of the process that computes, which is a child."""

    def run(most: int) -> tuple[int, float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        made = cp.run(model, "And", max_tokens=most, ctx=256, threads=threads).tokens
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return made, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    (few, short), (many, long) = run(8), run(8 + tokens)
    return (many - few) / (long - short)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="collab-forecast-") as name:
        folder = Path(name)
        models = {path.name: path for path in (ROOT / "tests" / "models").iterdir() if (path / "config.json").exists()}
        wide = widened(MODEL, folder / "wide.gguf", 8)
        models |= {"skewed, wide, F16": wide}
        models |= {f"skewed, wide, {kind}": quantized(wide, kind, folder / f"{kind}.gguf") for kind in TYPES}
        for title, model in models.items():
            placed = cp.place(model, tiers=["ram=16GB"], measure=True, threads=given.threads)
            speed = placed.placement.tensors.speed
            assert speed is not None
            measured = processor_speed if given.processor_time else wall_speed
            runs = [measured(model, given.tokens, given.threads) for _ in range(3)]
            rows.append(
                {
                    "model": title,
                    "expected": round(speed.expected, 1),
                    "roof": round(speed.roof, 1),
                    "run": round(max(runs), 1),
                    "off": round(max(runs) / speed.expected - 1, 3),
                }
            )
            print(rows[-1], flush=True)
    write_csv(RESULTS / "placement_forecast.csv", rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:+.0%}" if name == "off" else str(value) for name, value in row.items()))
    console = Console(width=120)
    console.print(table)
    console.print(f"median |off|: {median(abs(row['off']) for row in rows):.0%}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
