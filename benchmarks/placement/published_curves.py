"""Whether drawn traces have the shape of real ones: LRU curves of five large models, fitted at two points.

    python -m benchmarks.placement.published_curves CURVES

CURVES: boyle/data/curves.json of the wheel boyle-0.2.1 on PyPI (Apache-2.0): the hit rate of an LRU by the share of a
layer's experts that it holds, of one generation each. The traces are not public. Drawn traces (drawn_traces.py) have
two unknowns: how many tokens there were, which the hit rate with room for all experts tells, because there only first
uses miss; and the locality, which is fitted at a quarter of the experts (gemma4, whose curve leaves out first uses,
has the one unknown). All other points are compared. As there, each choice of a token is looked up and brought in by
itself, and a cache starts empty; where a cache holds fewer experts than a token uses, the order of its choices
counts, which is not known: these points are left out. Prints tables; writes placement_curves.csv.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.placement.drawn_traces import F64, I16, drawn, drawn_keeping
from benchmarks.vllm.load import write_csv
from collab_plugin.placement.builtin_policies import LRU

RESULTS = Path(__file__).parents[1] / "results"
LAYERS, MOST, FITTED, STEPS = 8, 1200, 0.25, 9
SETTLED = 600
"""Tokens after which choices count, where a curve leaves out first uses."""
Draw = Callable[[int, int, int, float], I16]


@dataclass(frozen=True)
class Curve:
    """``hits`` of an LRU by ``shares`` of a layer's ``experts``; ``used``: a token's choices. ``whole``: the hit rate
    with room for all, 1 where first uses are left out."""

    name: str
    experts: int
    used: int
    shares: F64
    hits: F64
    whole: float

    @property
    def rooms(self) -> list[int]:
        return [round(share * self.experts) for share in self.shares]


def read_curves(file: Path) -> list[Curve]:
    found = []
    for told in json.loads(file.read_text()).values():
        shares, hits = np.array(told["fractions"]), np.array(told["decode_hit_rate"])
        there = (np.round(shares * told["n_experts"]) >= told["k"]) & (shares < 1)
        name = told["model"].split("/")[-1]
        found.append(Curve(name, told["n_experts"], told["k"], shares[there], hits[there], float(hits[-1])))
    return found


def mixture(experts: int, used: int, tokens: int, spread: float) -> I16:
    """Logits with a lasting part as large as each of the wanderings."""
    return drawn(spread * np.random.default_rng(1).standard_normal((LAYERS, experts)), used, tokens, spread)


def keeping(experts: int, used: int, tokens: int, kept: float) -> I16:
    return drawn_keeping(np.random.default_rng(1).standard_normal((LAYERS, experts)), used, tokens, kept)


WAYS: dict[str, tuple[Draw, float]] = {"three spans": (mixture, 6.0), "one token": (keeping, 0.98)}
"""How traces are drawn, and the largest locality that is tried."""


def cut(chosen: I16, curve: Curve) -> I16:
    """As many tokens as leave the curve's share of first uses; all, where it leaves them out."""
    if curve.whole == 1:
        return chosen
    seen = np.zeros((LAYERS, curve.experts), np.bool_)
    for token, ids in enumerate(chosen):
        seen[np.arange(LAYERS)[:, None], ids] = True
        if seen.sum() <= (1 - curve.whole) * (token + 1) * ids.size:
            return chosen[: token + 1]
    return chosen


def simulated(chosen: I16, curve: Curve, rooms: Sequence[int]) -> F64:
    """Hit rates of our simulator, with a step for each choice."""
    one_by_one = chosen.transpose(0, 2, 1).reshape(-1, LAYERS, 1)
    trace = cp.RoutingTrace(one_by_one, tuple(range(LAYERS)), curve.experts)
    start = SETTLED * curve.used if curve.whole == 1 else 0
    results = cp.replay(trace, LRU, [room * LAYERS for room in rooms], cp.uses_of(trace.layers, curve.experts, None))
    return np.array([1 - result.missed[start:].mean() for result in results])


def fitted(curve: Curve, draw: Draw, most: float) -> tuple[float, I16]:
    """The locality whose trace hits as often as is published at `FITTED`, by halving; and the trace."""
    at = int(np.flatnonzero(curve.shares == FITTED)[0])
    low, high = 0.0, most
    for _ in range(STEPS):
        middle = (low + high) / 2
        chosen = cut(draw(curve.experts, curve.used, MOST, middle), curve)
        hits = simulated(chosen, curve, [curve.rooms[at]])[0]
        low, high = (middle, high) if hits < curve.hits[at] else (low, middle)
    return middle, chosen


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    rows: list[dict[str, Any]] = []
    for curve in read_curves(parser.parse_args(arguments).curves):
        for way, (draw, most) in WAYS.items():
            locality, chosen = fitted(curve, draw, most)
            for share, published, hits in zip(
                curve.shares, curve.hits, simulated(chosen, curve, curve.rooms), strict=True
            ):  # fmt: skip
                rows.append(
                    {"model": curve.name, "locality": way, "value": round(locality, 3), "tokens": len(chosen),
                     "share": float(share), "published": round(float(published), 4), "drawn": round(float(hits), 4),
                     "off_points": round(100 * float(hits - published), 1), "fitted": bool(share == FITTED)}
                )  # fmt: skip
            print(rows[-1], flush=True)
    write_csv(RESULTS / "placement_curves.csv", rows)
    _print(rows)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    shares = sorted({row["share"] for row in rows})
    table = Table("model", "locality", "value", "tokens", *(f"{share:.0%}" for share in shares), "mean", "largest")
    for model, way in dict.fromkeys((row["model"], row["locality"]) for row in rows):
        own = [row for row in rows if (row["model"], row["locality"]) == (model, way)]
        off = {row["share"]: row["off_points"] for row in own}
        compared = [abs(row["off_points"]) for row in own if not row["fitted"]]
        table.add_row(
            model, way, f"{own[0]['value']:.2f}", str(own[0]["tokens"]),
            *(f"{off[share]:+.1f}" if share in off else "" for share in shares),
            f"{np.mean(compared):.1f}", f"{max(compared):.1f}",
        )  # fmt: skip
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
