"""The back-off steps: the smallest possible file after each, until one fits the budget."""

from __future__ import annotations

from textwrap import fill

from matplotlib.figure import Figure

from collab_plugin.reports.gather import Facts
from collab_plugin.reports.number_words import size
from collab_plugin.reports.plots.style import BLUE, INK, byte_unit, label, new_figure


def back_off_plot(facts: Facts) -> Figure:
    """One bar a step, the first on top."""
    steps, budget = facts.plan.back_off, facts.plan.budget
    unit, factor = byte_unit(max(max(s.smallest_bytes for s in steps), budget or 0))
    figure = new_figure(1.6 + 0.46 * len(steps))
    axes = figure.add_subplot()
    values = [step.smallest_bytes / factor for step in steps]
    axes.barh(range(len(steps)), values, height=0.6, color=BLUE)
    for row, step in enumerate(steps):
        axes.annotate(
            size(step.smallest_bytes),
            (values[row], row),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            zorder=4,
        )
    axes.set_yticks(range(len(steps)), [fill(f"{n}. {label(s.step, 100)}", 42) for n, s in enumerate(steps, 1)])
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(*values, (budget or 0) / factor))
    if budget:
        axes.axvline(budget / factor, color=INK, linestyle="--", linewidth=1.5, label=f"budget: {size(budget)}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    axes.set_xlabel(f"smallest file possible after the step, {unit}")
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_title("What was relaxed until the budget held")
    return figure
