"""Hit rates of placement policies over the size of the first tier."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.figure import Figure

from collab_plugin.placement.policy_table import HitCurve
from collab_plugin.placement.simulate import OPTIMUM
from collab_plugin.reports.plots.style import INK, SERIES, new_figure

_MARKS = "osD^vPX*"


def hit_rate_plot(curves: Sequence[HitCurve], title: str = "") -> Figure:
    """One line a policy; the optimum is dashed. Points where a policy cannot be run are left out."""
    figure = new_figure(5.6)
    axes = figure.add_subplot()
    styles = cycle(zip(SERIES, _MARKS, strict=False))
    for curve in curves:
        points = [(100 * x, 100 * y) for x, y in zip(curve.shares, curve.hits, strict=True) if y is not None]
        if not points:
            continue
        if curve.policy == OPTIMUM:
            axes.plot(*zip(*points, strict=True), "--", color=INK, label="optimum (the trace is known)")
        else:
            colour, mark = next(styles)
            axes.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=4, label=curve.policy)
    axes.set_title(title or "Choices that the first tier serves")
    axes.set_xlabel("share of the experts in the first tier, %")
    axes.set_ylabel("hits, %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    axes.grid(True)
    axes.legend(loc="lower right")
    return figure
