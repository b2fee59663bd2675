"""Hit rates over time when the text changes, and their plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import collab_plugin as cp
from collab_plugin.reports.plots.style import INK, SERIES, new_figure, png

F64 = NDArray[np.float64]


def by_window(result: cp.Replay, trace: cp.RoutingTrace, size: int) -> F64:
    """Hit rate of each ``size`` tokens."""
    per_token = trace.chosen.shape[1] * trace.chosen.shape[2]
    missed = result.missed.sum(1, dtype=np.int64)
    windows = len(missed) // size
    return np.asarray(1 - missed[: windows * size].reshape(windows, size).sum(1) / (size * per_token))


def joined(first: cp.RoutingTrace, second: cp.RoutingTrace) -> cp.RoutingTrace:
    """One after the other, as one sequence each."""
    return cp.RoutingTrace(
        np.concatenate([first.chosen, second.chosen]), first.layers, first.experts, (0, first.tokens), ("", "")
    )


def routing_of(trace: cp.RoutingTrace) -> Mapping[int, cp.LayerRouting]:
    """What calibration would have counted on ``trace``."""
    return {n: cp.LayerRouting(trace.tokens, row) for n, row in zip(trace.layers, trace.counts, strict=True)}


def draw(panels: Mapping[str, tuple[Mapping[str, F64], int, float]], out: Path) -> None:
    """A panel for each title: policy -> hit rates of windows, tokens a window, and the token at which text changes."""

    def figure() -> Figure:
        found = new_figure(3.9 * len(panels))
        for axes, (title, (lines, size, change)) in zip(
            np.atleast_1d(found.subplots(len(panels), 1)), panels.items(), strict=True
        ):
            for (name, hits), colour in zip(lines.items(), SERIES, strict=False):
                axes.plot((np.arange(len(hits)) + 0.5) * size, 100 * hits, color=colour, label=name, linewidth=1.5)
            axes.axvline(change, color=INK, linestyle="--", linewidth=1)
            axes.set_title(title)
            axes.set_xlabel("tokens")
            axes.set_ylabel("hits, %")
            axes.grid(True)
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=len(lines))
        return found

    out.write_bytes(png(figure))


def after(hits: F64, size: int, change: int) -> tuple[float, float]:
    """Mean hit rate of the windows before the text changes, and of those after it."""
    at = change // size
    return float(hits[:at].mean()), float(hits[at:].mean())
