"""Which plots a report has."""

from __future__ import annotations

from functools import partial

from collab_plugin.progress import Advance
from collab_plugin.reports.gather import Facts
from collab_plugin.reports.plots.bits import bits_plot
from collab_plugin.reports.plots.front import front_plot, has_front
from collab_plugin.reports.plots.heat import importance_plot
from collab_plugin.reports.plots.kld import pairs_plot, positive_pairs
from collab_plugin.reports.plots.memory_plot import memory_plot
from collab_plugin.reports.plots.style import png


def draw_plots(facts: Facts, report: Advance) -> dict[str, bytes]:
    """Return PNG files by name without suffix; plots with nothing to show are not there."""
    plots = {"bits": partial(bits_plot, facts.bits), "memory": partial(memory_plot, facts)}
    if facts.importance is not None:
        plots["importance"] = partial(importance_plot, facts.importance)
    if has_front(facts):
        plots["front"] = partial(front_plot, facts)
    if positive_pairs(facts):
        plots["predicted"] = partial(pairs_plot, facts)
    drawn = {}
    for done, (name, draw) in enumerate(plots.items(), 1):
        drawn[name] = png(draw)
        report(done, len(plots))
    return drawn
