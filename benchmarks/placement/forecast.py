"""Forecasts of speed against runs on this machine's processor.

    python -m benchmarks.placement.forecast [--threads 1] [--tokens 160] [--rounds 3] [--processor-time]

The trained models as they are, and skewed-qwen2moe with experts 8 times as wide (see larger_than_memory.py) as F16,
Q8_0, Q4_K and Q2_K. Each is placed with `--measure` in a memory that holds it, then run, ``--rounds`` times in turn;
medians count. ``--processor-time``: tokens a second of the thread's own time, for a machine with other work; with one
thread. Prints a table; writes placement_forecast.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
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
WARM = 8
"""Tokens before time counts."""


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
    """What `run` does for a token, timed by the thread's own time."""
    import llama_cpp
    from collab_llamacpp.native.model import LoadedModel
    from collab_llamacpp.native.sampling import piece, sampler

    with LoadedModel(model, ctx=256, threads=threads) as session:
        chain = sampler(0.0, 0)
        prompt = session.tokenize("And")
        session.decode(prompt, len(prompt) - 1)
        start = 0.0
        for at in range(WARM + tokens):
            if at == WARM:
                start = time.thread_time()
            token = llama_cpp.llama_sampler_sample(chain, session.ctx, -1)
            piece(session, token)
            session.decode([token], 0, len(prompt) + at)
        llama_cpp.llama_synchronize(session.ctx)
        return tokens / (time.thread_time() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="collab-forecast-") as name:
        folder = Path(name)
        models = {}
        for path in sorted((ROOT / "tests" / "models").iterdir()):
            if (path / "config.json").exists():
                models[path.name] = folder / f"{path.name}.gguf"
                cp.compress(path, copy_of(path), models[path.name], threads=1)
        wide = widened(MODEL, folder / "wide.gguf", 8)
        models |= {"skewed, wide, F16": wide}
        models |= {f"skewed, wide, {kind}": quantized(wide, kind, folder / f"{kind}.gguf") for kind in TYPES}
        for title, model in models.items():
            measured = processor_speed if given.processor_time else wall_speed
            speeds, runs = [], []
            for _ in range(given.rounds):
                placed = cp.place(model, tiers=["ram=16GB"], measure=True, threads=given.threads)
                assert placed.placement.tensors.speed is not None
                speeds.append(placed.placement.tensors.speed)
                runs.append(measured(model, given.tokens, given.threads))
            expected, run = median(speed.expected for speed in speeds), median(runs)
            rows.append(
                {
                    "model": title,
                    "expected": round(expected, 1),
                    "roof": round(median(speed.roof for speed in speeds), 1),
                    "run": round(run, 1),
                    "off": round(run / expected - 1, 3),
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
