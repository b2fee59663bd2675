"""Placement policies on OLMoE's published trace, against the figures that were published with it.

    python -m benchmarks.placement.olmoe TRACE

TRACE: the folder stage3_residency/traces/full/chunks of github.com/helloimrizy-pages/opt, 400 files in a folder for
each domain; it has no licence, so that nothing of it is in this repository. As there, the first 20 sequences of a
domain are for calibration, and each domain starts with empty caches. Prints tables; writes placement_olmoe.csv,
placement_olmoe.png, placement_olmoe_shift.csv and placement_olmoe_shift.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.placement.over_time import after, by_window, draw, joined, routing_of
from benchmarks.vllm.load import write_csv
from collab_plugin.placement.builtin_policies import LFRU, LFU_DECAY, LFU_STEADY, LRU, LRU_WARM, MOST_SELECTED
from collab_plugin.placement.policy_table import HitCurve
from collab_plugin.placement.simulate import OPTIMUM
from collab_plugin.reports.plots.hit_rate_plot import hit_rate_plot
from collab_plugin.reports.plots.style import png

RESULTS = Path(__file__).parents[1] / "results"
CAPACITIES = (8, 12, 16, 24, 32, 48)
CALIBRATION = 20
PUBLISHED = {("lru, cold", 16): 2_080_803, ("lfu-decay, cold", 16): 1_872_290, (OPTIMUM, 16): 1_375_283}
"""Misses of 5,231,616 requests, of the trace's stage3_residency report, stationary."""
WINDOW = 128


def run(trace: cp.RoutingTrace, domain: str) -> dict[str, list[cp.Replay]]:
    """Every policy on one domain, for each of the capacities."""
    numbers = trace.sequence_numbers(domain)
    known = trace.sequences(numbers[:CALIBRATION])
    seen = trace.sequences(numbers[CALIBRATION:])
    rooms = [capacity * len(trace.layers) for capacity in CAPACITIES]
    stats = cp.uses_of(trace.layers, trace.experts, routing_of(known))
    nothing = cp.uses_of(trace.layers, trace.experts, None)
    return {
        "lru, cold": cp.replay(seen, LRU, rooms, nothing),
        "lru-warm": cp.replay(seen, LRU_WARM, rooms, stats),
        "lfu-decay, cold": cp.replay(seen, LFU_DECAY, rooms, nothing),
        "lfu-decay": cp.replay(seen, LFU_DECAY, rooms, stats),
        "lfu-steady": cp.replay(seen, LFU_STEADY, rooms, stats),
        "lfru": cp.replay(seen, LFRU, rooms, stats),
        "most-selected": cp.replay(seen, MOST_SELECTED, rooms, stats),
        OPTIMUM: cp.best_possible(seen, rooms),
    }


def shift(trace: cp.RoutingTrace, capacity: int) -> dict[str, tuple[list[float], float, float]]:
    """Policies that know the first domain, on it and then on the second: hit rates of windows, before and after."""
    general, coding = (trace.sequence_numbers(name) for name in ("general", "coding"))
    known = routing_of(trace.sequences(general[:CALIBRATION]))
    first, second = trace.sequences(general[CALIBRATION:]), trace.sequences(coding[CALIBRATION:])
    both, uses = joined(first, second), cp.uses_of(trace.layers, trace.experts, known)
    found = {}
    for policy in (MOST_SELECTED, LRU_WARM, LFU_DECAY, LFRU, LFU_STEADY):
        (result,) = cp.replay(both, policy, [capacity * len(trace.layers)], uses)
        hits = by_window(result, both, WINDOW * 4)
        found[policy.name] = (hits.tolist(), *after(hits, WINDOW * 4, first.tokens))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    trace = cp.read_trace(parser.parse_args(arguments).trace)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    results = [run(trace, domain) for domain in sorted(set(trace.labels))]
    for policy in results[0]:
        for at, capacity in enumerate(CAPACITIES):
            misses = sum(result[policy][at].misses for result in results)
            requests = sum(result[policy][at].requests for result in results)
            rows.append(
                {
                    "policy": policy,
                    "capacity": capacity,
                    "requests": requests,
                    "misses": misses,
                    "hits": round(1 - misses / requests, 4),
                    "moved": sum(result[policy][at].moved for result in results),
                    "published": PUBLISHED.get((policy, capacity), ""),
                }
            )
    seconds = time.perf_counter() - start
    RESULTS.mkdir(exist_ok=True)
    write_csv(RESULTS / "placement_olmoe.csv", rows)
    table = Table("policy", *(f"{capacity} of {trace.experts}" for capacity in CAPACITIES), title="hits")
    for policy in results[0]:
        table.add_row(policy, *(f"{row['hits']:.1%}" for row in rows if row["policy"] == policy))
    console = Console(width=140)
    console.print(table)
    for row in rows:
        if row["published"]:
            same = "the same" if row["misses"] == row["published"] else "NOT the same"
            console.print(
                f"{row['policy']}, {row['capacity']}: {row['misses']:,} misses, published {row['published']:,}: {same}"
            )
    replayed = sum(row["requests"] for row in rows)
    console.print(f"{replayed:,} requests replayed in {seconds:.0f} s")
    shares = tuple(capacity / trace.experts for capacity in CAPACITIES)
    curves = [
        HitCurve(policy, shares, tuple(row["hits"] for row in rows if row["policy"] == policy)) for policy in results[0]
    ]
    title = "OLMoE-1B-7B, 5,231,616 choices: those that the first tier serves"
    (RESULTS / "placement_olmoe.png").write_bytes(png(lambda: hit_rate_plot(curves, title)))
    _shifts(trace, console)


def _shifts(trace: cp.RoutingTrace, console: Console) -> None:
    table = Table("capacity", "policy", "before", "after", title="general text, then code; statistics of general text")
    panels = {}
    first = trace.sequences(trace.sequence_numbers("general")[CALIBRATION:]).tokens
    rows = []
    for capacity in (16, 32):
        found = shift(trace, capacity)
        for policy, (_, before, later) in found.items():
            table.add_row(str(capacity), policy, f"{before:.1%}", f"{later:.1%}")
            rows.append({"capacity": capacity, "policy": policy, "before": round(before, 4), "after": round(later, 4)})
        lines = {policy: np.array(hits) for policy, (hits, _, _) in found.items()}
        panels[f"OLMoE-1B-7B, {capacity} of {trace.experts} experts: general text, then code"] = (
            lines,
            WINDOW * 4,
            float(first),
        )
    console.print(table)
    write_csv(RESULTS / "placement_olmoe_shift.csv", rows)
    draw(panels, RESULTS / "placement_olmoe_shift.png")


if __name__ == "__main__":
    main()
