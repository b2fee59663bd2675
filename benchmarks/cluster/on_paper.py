"""How long DeepSeek-V3 would take on a cluster: the longer of computing and of reading from shared storage."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.throughput.run import Run, v3_weights

MACHINES, CORES = 8, 64
STORAGE = (1.0, 5.0, 20.0)
"""GB/s that all machines together read."""


def on_paper(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of a table, fastest type first: hours of one core, minutes of the cluster."""
    weights = v3_weights()
    columns = (f"with storage of {speed:g} GB/s" for speed in STORAGE)
    head = ("type", "one core", f"{MACHINES} x {CORES} cores, computing", *columns)
    rows = []
    for run in sorted(runs, key=lambda run: -run.core_weights_s):
        rate = run.core_weights_s
        computing = weights / (rate * MACHINES * CORES) / 60
        longer = (max(computing, weights / (speed * 1e9) / 60) for speed in STORAGE)
        minutes = (f"{value:.1f} min" for value in (computing, *longer))
        rows.append((run.type, f"{weights / rate / 3600:,.0f} h", *minutes))
    return head, rows
