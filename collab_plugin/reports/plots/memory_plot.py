"""The budget bar: the file by role against the budget, and what running takes in all."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from collab_plugin.placement.memory import MemoryPart
from collab_plugin.reports.gather import Facts
from collab_plugin.reports.number_words import size
from collab_plugin.reports.plots.style import GREY, INK, PURPLE, SERIES, SKY, YELLOW, byte_unit, new_figure

_RUNTIME = {"KV cache": SKY, "compute buffer": PURPLE, "reserve": YELLOW}
_SMALL = 0.012
"""Roles below this share of the file are drawn together."""


def memory_plot(facts: Facts) -> Figure:
    """Above the file against its budget, below what running takes; each on its own scale."""
    figure = new_figure(5.2)
    halves = figure.add_gridspec(2, 1)
    above, below = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    plan, memory = facts.plan, facts.memory
    _bar(above, f"The file: {size(plan.bytes)}", _weights(facts), max(plan.bytes, plan.budget or 0), plan.budget)
    weights = MemoryPart("the file", plan.bytes, "exact", "")
    parts = [(weights, "#C9D6E2"), *((p, _RUNTIME[p.name]) for p in memory.runtime if p.bytes)]
    known = "" if memory.complete else ", as far as known"
    title = f"Running it with a context of {memory.setup.context:,} tokens: {size(memory.total)}{known}"
    _bar(below, title, parts, memory.total, None)
    return figure


def _bar(figure: SubFigure, title: str, parts: list[tuple[MemoryPart, str]], longest: int, budget: int | None) -> None:
    axes = figure.add_subplot()
    axes.set_title(title)
    unit, factor = byte_unit(longest)
    _stack(axes, parts, factor, longest)
    if budget:
        axes.axvline(budget / factor, color=INK, linestyle="--", linewidth=1.5, label=f"budget: {size(budget)}")
    axes.set_yticks([])
    axes.set_ylim(-0.45, 0.45)
    axes.set_xlim(0, 1.02 * longest / factor)
    axes.set_xlabel(unit)
    axes.grid(True, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=4, handlelength=1.4)


def _weights(facts: Facts) -> list[tuple[MemoryPart, str]]:
    """The larger roles, each in its colour, and the rest as one."""
    parts = sorted(facts.memory.weights, key=lambda p: -(p.bytes or 0))
    large = [p for p in parts if (p.bytes or 0) >= _SMALL * facts.plan.bytes][: len(SERIES) - 2]
    rest = [p for p in parts if p not in large]
    colours = [c for c in SERIES if c not in (GREY, SKY, PURPLE, YELLOW)] + ["#8C564B", "#A7C957"]
    drawn = list(zip(large, colours, strict=False))
    if rest:
        drawn.append((MemoryPart("all else", sum(p.bytes or 0 for p in rest), "exact", ""), GREY))
    return drawn


def _stack(axes: Axes, parts: list[tuple[MemoryPart, str]], factor: float, longest: int) -> None:
    """Draw the parts one after the other, named inside where there is room."""
    start = 0.0
    for part, colour in parts:
        width = (part.bytes or 0) / factor
        hatch = "//" if part.certainty in ("estimate", "upper bound") else None
        name = f"{part.name}: {size(part.bytes or 0)}{'' if part.certainty == 'exact' else f' ({part.certainty})'}"
        axes.barh(
            0, width, left=start, height=0.62, color=colour, edgecolor="white", linewidth=1.0, hatch=hatch, label=name
        )
        if width * factor > 0.09 * longest:
            axes.text(start + width / 2, 0, part.name, ha="center", va="center", fontsize=10, color=_ink(colour))
        start += width


def _ink(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 130 else INK
