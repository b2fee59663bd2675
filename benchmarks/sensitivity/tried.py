"""Plans whose KL divergence was predicted and measured: rows of benchmarks/results/sensitivity.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KINDS = ("error alone", "default weights", "probed")
RANDOM, NEAR = "random", "near"


@dataclass(frozen=True)
class Tried:
    """One plan. ``plans``: how it was made; ``predicted``: by kind, and ``measured``, in nats."""

    model: str
    plans: str
    seed: int
    expert_count: int
    bpw: float
    predicted: Mapping[str, float]
    measured: float


def read_tried(path: Path) -> list[Tried]:
    """None where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Tried(r["model"], r["plans"], int(r["seed"]), int(r["experts"]), float(r["bpw"]),
                  {k: float(r[k]) for k in KINDS}, float(r["measured"]))
            for r in csv.DictReader(file)
        ]  # fmt: skip


def write_tried(path: Path, rows: list[Tried]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "plans", "seed", "experts", "bpw", *KINDS, "measured"))
        for r in rows:
            figures = (f"{v:.6g}" for v in (r.bpw, *(r.predicted[k] for k in KINDS), r.measured))
            writer.writerow((r.model, r.plans, r.seed, r.expert_count, *figures))
