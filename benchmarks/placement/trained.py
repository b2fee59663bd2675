"""Placement policies on traces of the trained models: which wins, and what a change of domain does.

    python -m benchmarks.placement.trained [--chunks 40] [--threads 1]

Each model is calibrated on English (20,480 tokens by default); policies are replayed on other English text, and on
English followed by Python. Prints tables; writes placement_trained.csv and placement_trained_shift.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.placement.over_time import F64, after, by_window, draw, joined
from benchmarks.quality.bench import ROOT, TEXTS
from benchmarks.vllm.load import write_csv
from collab_plugin.placement.builtin_policies import LFRU, LFU_DECAY, LFU_STEADY, LRU_WARM, MOST_SELECTED, POLICIES
from collab_plugin.placement.simulate import OPTIMUM

RESULTS = Path(__file__).parents[1] / "results"
MODELS = (
    *(ROOT / "tests" / "models" / name for name in ("tiny-qwen3moe", "tiny-deepseek-v3")),
    ROOT / "benchmarks" / "models" / "skewed-qwen2moe",
)
CTX = 128
SHARES = (0.15, 0.25, 0.5, 0.75)
WINDOW = 256


def recorded(model: Path, text: str, folder: Path, chunks: int, threads: int) -> tuple[cp.RoutingTrace, cp.Stats]:
    trace = folder / f"{model.name}.{text}.npz"
    stats = cp.calibrate(
        model, texts=TEXTS / f"{text}.txt", ctx=CTX, chunks=chunks, trace=trace, threads=threads, warn=lambda _: None
    )
    return cp.read_trace(trace), stats


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    console = Console(width=160)
    rows: list[dict[str, Any]] = []
    panels: dict[str, tuple[dict[str, F64], int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            made = {
                text: recorded(model, text, Path(folder), given.chunks, given.threads)
                for text in ("english.calibration", "english.validation", "python.validation")
            }
            rows += policies(model, made["english.calibration"][1], made["english.validation"][0])
            panels |= shifted(model, made, rows)
    write_csv(RESULTS / "placement_trained.csv", rows)
    for what in ("hits", "before", "after"):
        _table(console, rows, what)
    draw(panels, RESULTS / "placement_trained_shift.png")


def policies(model: Path, stats: cp.Stats, trace: cp.RoutingTrace) -> list[dict[str, Any]]:
    """Hit rates on text of the calibration's kind."""
    total = len(trace.layers) * trace.experts
    uses = cp.uses_of(trace.layers, trace.experts, stats.routing)
    rows: list[dict[str, Any]] = []
    rooms = [round(share * total) for share in SHARES]
    found = {policy.name: cp.replay(trace, policy, rooms, uses) for policy in POLICIES}
    found[OPTIMUM] = cp.best_possible(trace, rooms, filled=True)
    for name, results in found.items():
        for share, result in zip(SHARES, results, strict=True):
            moved = round(result.moved / trace.tokens, 3)
            rows.append(_row(model, "english", name, share) | {"hits": round(result.hit_rate, 4), "moved": moved})
    return rows


def _row(model: Path, text: str, policy: str, share: float) -> dict[str, Any]:
    return {"model": model.name, "text": text, "policy": policy, "share": share, "hits": "", "moved": "",
            "before": "", "after": ""}  # fmt: skip


def shifted(
    model: Path, made: dict[str, tuple[cp.RoutingTrace, cp.Stats]], rows: list[dict[str, Any]]
) -> dict[str, tuple[dict[str, F64], int, float]]:
    """English, then Python, at half of the experts; adds to ``rows``."""
    english, python = made["english.validation"][0], made["python.validation"][0]
    both = joined(english, python)
    uses = cp.uses_of(both.layers, both.experts, made["english.calibration"][1].routing)
    lines: dict[str, F64] = {}
    for policy in (MOST_SELECTED, LRU_WARM, LFU_DECAY, LFRU, LFU_STEADY):
        (result,) = cp.replay(both, policy, [len(both.layers) * both.experts // 2], uses)
        lines[policy.name] = by_window(result, both, WINDOW)
        before, later = after(lines[policy.name], WINDOW, english.tokens)
        row = _row(model, "english, then python", policy.name, 0.5)
        rows.append(row | {"before": round(before, 4), "after": round(later, 4)})
    return {f"{model.name}, half of the experts: English, then Python": (lines, WINDOW, float(english.tokens))}


def _table(console: Console, rows: Sequence[dict[str, Any]], what: str) -> None:
    chosen = [row for row in rows if row[what] != ""]
    columns = list(dict.fromkeys((row["model"], row["share"]) for row in chosen))
    table = Table("policy", *(f"{model} {share:.0%}" for model, share in columns), title=what)
    for policy in dict.fromkeys(row["policy"] for row in chosen):
        found = {(row["model"], row["share"]): row[what] for row in chosen if row["policy"] == policy}
        table.add_row(str(policy), *(f"{found[column]:.1%}" for column in columns))
    console.print(table)


if __name__ == "__main__":
    main()
