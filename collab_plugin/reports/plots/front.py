"""The Pareto front: bytes against KL divergence, and the candidates at the budget."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from collab_plugin.plans.plan import Point
from collab_plugin.reports.gather import Facts
from collab_plugin.reports.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    RED,
    SERIES,
    byte_unit,
    label,
    log_axis,
    new_figure,
)

_MARKERS = ("s", "^", "v", "P", "X", "h", "<", ">")
_RIVAL_MARKERS = ("D", "d", "p", "H", "8", "*", "<", ">")


def has_front(facts: Facts) -> bool:
    """Whether there is anything to compare the plan with."""
    return len(_drawn(facts.points)) + len(facts.rivals) > 1


def has_candidates(points: Sequence[Point]) -> bool:
    """Whether the search weighed more than one candidate at the budget."""
    return len([p for p in _drawn(points) if p.kind == "candidate"]) > 1


def _drawn(points: Sequence[Point]) -> list[Point]:
    """A logarithm needs positive values; the table has all."""
    return [p for p in points if p.predicted_kld > 0]


def front_plot(facts: Facts) -> Figure:
    """Left (or alone): all plans and rivals over bytes. Right: candidates at the budget over experts kept."""
    both = has_candidates(facts.points)
    figure = new_figure(6.0)
    axes = figure.subplots(1, 2, width_ratios=(1.35, 1)) if both else [figure.add_subplot()]
    _over_bytes(axes[0], facts)
    if both:
        _over_experts(axes[1], facts)
    for one in axes:
        one.grid(True, which="major")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _level(facts: Facts) -> str:
    return "KL divergence, nats a token (log)" if facts.plan.prediction else "predicted cost, no unit (log)"


def _over_bytes(axes: Axes, facts: Facts) -> None:
    points, plan = _drawn(facts.points), facts.plan
    rivals = [r for r in facts.rivals if r.mean_kld > 0]
    sizes = [p.bytes for p in points] + [r.bytes for r in rivals] + ([plan.budget] if plan.budget else [])
    unit, factor = byte_unit(max(sizes))
    _by_kind(axes, points, factor)
    _rivals(axes, facts, factor)
    _evaluated(axes, facts, factor)
    if plan.budget:
        axes.axvline(plan.budget / factor, color=INK, linestyle="--", linewidth=1.2, label="budget")
    measured = [p.measured_kld for p in points if p.measured_kld] + [e.mean_kld for e in facts.evaluations]
    levels = [p.predicted_kld for p in points] + [r.mean_kld for r in rivals] + [m for m in measured if m > 0]
    log_axis(axes, "y", min(levels), max(levels))
    if max(sizes) > 6 * min(sizes):
        log_axis(axes, "x", min(sizes) / factor, max(sizes) / factor)
    axes.set_xlabel(f"size of the file, {unit}")
    axes.set_ylabel(_level(facts))
    axes.set_title("Size against loss (lower left is better)")


def _by_kind(axes: Axes, points: Sequence[Point], factor: float) -> None:
    """Hollow: predicted. Filled: measured. A thin line joins the two of one plan."""
    front = sorted((p for p in points if p.kind == "front"), key=lambda p: p.bytes)
    x = [p.bytes / factor for p in front]
    if front:
        axes.plot(
            x,
            [p.predicted_kld for p in front],
            color=BLUE,
            marker="o",
            markersize=5,
            markerfacecolor="white",
            linewidth=1.5,
            label="Pareto front, predicted",
        )
    rest = [p for p in points if p.kind == "candidate" and not p.chosen]
    if rest:
        axes.plot(
            [p.bytes / factor for p in rest],
            [p.predicted_kld for p in rest],
            color=GREY,
            marker="o",
            markersize=5,
            markerfacecolor="none",
            linestyle="none",
            label="candidate, predicted",
        )
    baselines = [p for p in points if p.kind == "baseline"]
    for number, name in enumerate(dict.fromkeys(p.label for p in baselines)):
        own = [p for p in baselines if p.label == name]
        axes.plot(
            [p.bytes / factor for p in own],
            [p.predicted_kld for p in own],
            color=GREEN,
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=9,
            markerfacecolor="white",
            markeredgewidth=1.6,
            label=f"baseline: {label(name)}, predicted",
        )
    chosen = [p for p in points if p.chosen]
    if chosen:
        axes.plot(
            [p.bytes / factor for p in chosen],
            [p.predicted_kld for p in chosen],
            color=RED,
            marker="*",
            markersize=17,
            markerfacecolor="white",
            markeredgewidth=1.6,
            linestyle="none",
            zorder=5,
            label="this plan, predicted",
        )
    _measured(axes, points, factor)


def _measured(axes: Axes, points: Sequence[Point], factor: float) -> None:
    known = [(p.bytes / factor, p.predicted_kld, p.measured_kld, p.chosen) for p in points if p.measured_kld]
    for x, predicted, measured, _ in known:
        axes.plot([x, x], [predicted, measured], color=GREY, linewidth=0.8, zorder=1)
    others = [(x, m) for x, _, m, chosen in known if not chosen]
    if others:
        axes.plot(
            *zip(*others, strict=True),
            color=INK,
            marker="o",
            markersize=6,
            linestyle="none",
            label="candidate or baseline, measured",
        )
    own = [(x, m) for x, _, m, chosen in known if chosen]
    if own:
        axes.plot(
            *zip(*own, strict=True),
            color=RED,
            marker="*",
            markersize=17,
            linestyle="none",
            zorder=6,
            label="this plan, measured when planned",
        )


def _rivals(axes: Axes, facts: Facts, factor: float) -> None:
    for number, name in enumerate(dict.fromkeys(r.name for r in facts.rivals)):
        own = [(r.bytes / factor, r.mean_kld) for r in facts.rivals if r.name == name and r.mean_kld > 0]
        if own:
            axes.plot(
                *zip(*own, strict=True),
                color=SERIES[(number + 1) % len(SERIES)],
                markersize=8,
                linewidth=1.0,
                marker=_RIVAL_MARKERS[number % len(_RIVAL_MARKERS)],
                markeredgecolor=INK,
                markeredgewidth=0.6,
                label=f"rival: {label(name)}, measured",
            )


def _evaluated(axes: Axes, facts: Facts, factor: float) -> None:
    found = [e.mean_kld for e in facts.evaluations if e.mean_kld > 0]
    if found:
        axes.plot(
            [facts.plan.bytes / factor] * len(found),
            found,
            color=RED,
            marker="*",
            markersize=15,
            markeredgecolor=INK,
            markeredgewidth=0.8,
            linestyle="none",
            zorder=7,
            label="this plan, evaluated",
        )


def _over_experts(axes: Axes, facts: Facts) -> None:
    """Prune more or quantize more? One line for each number of experts a token uses."""
    candidates = [p for p in _drawn(facts.points) if p.kind == "candidate"]
    for number, used in enumerate(sorted({p.experts_used for p in candidates})):
        own = sorted((p for p in candidates if p.experts_used == used), key=lambda p: p.expert_count)
        axes.plot(
            [p.expert_count for p in own],
            [p.predicted_kld for p in own],
            color=SERIES[number % len(SERIES)],
            marker=_RIVAL_MARKERS[number % len(_RIVAL_MARKERS)],
            markersize=6,
            linewidth=1.2,
            label=f"{used} a token",
        )
    for p in candidates:
        if p.chosen:
            axes.plot(
                [p.expert_count],
                [p.predicted_kld],
                color=RED,
                marker="*",
                markersize=17,
                zorder=5,
                markerfacecolor="white",
                markeredgewidth=1.6,
            )
    levels = [p.predicted_kld for p in candidates]
    log_axis(axes, "y", min(levels), max(levels))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel("experts kept a layer, mean" if facts.plan.requires else "experts kept in every layer")
    axes.set_ylabel(_level(facts))
    axes.set_title("Candidates at the budget, predicted")
    axes.legend(title="experts used", loc="best", title_fontsize=10)
