"""Predicted against measured KL divergence."""

from __future__ import annotations

from matplotlib.figure import Figure

from collab_plugin.reports.gather import Facts, PredictedAgainstMeasured
from collab_plugin.reports.plots.style import BLUE, GREY, INK, RED, log_axis, new_figure


def positive_pairs(facts: Facts) -> list[PredictedAgainstMeasured]:
    """A logarithm needs positive values; the table has all."""
    return [p for p in facts.pairs if p.predicted > 0 and p.measured > 0]


def pairs_plot(facts: Facts) -> Figure:
    """One point a plan that was built and evaluated; on the diagonal the prediction is right."""
    pairs = positive_pairs(facts)
    figure = new_figure(5.6)
    axes = figure.add_subplot()
    own, rest = [p for p in pairs if p.chosen], [p for p in pairs if not p.chosen]
    predicted, measured = [p.predicted for p in pairs], [p.measured for p in pairs]
    if facts.plan.prediction:
        # Room on both sides, so that the band's borders are seen.
        low, high = min(predicted + measured) / 2, max(predicted + measured) * 2
        ends = [low / 3, high * 3]
        axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1.2, label="as predicted")
        axes.fill_between(
            ends, [e / 2 for e in ends], [e * 2 for e in ends], color="#EDEDED", label="within twice", zorder=0
        )
        log_axis(axes, "x", low, high)
        log_axis(axes, "y", low, high)
    else:
        log_axis(axes, "x", min(predicted), max(predicted))
        log_axis(axes, "y", min(measured), max(measured))
    if rest:
        axes.plot(
            [p.predicted for p in rest],
            [p.measured for p in rest],
            color=BLUE,
            marker="o",
            markersize=7,
            markeredgecolor=INK,
            markeredgewidth=0.6,
            linestyle="none",
            label="other plan",
        )
    if own:
        axes.plot(
            [p.predicted for p in own],
            [p.measured for p in own],
            color=RED,
            marker="*",
            markersize=17,
            markeredgecolor=INK,
            markeredgewidth=0.6,
            linestyle="none",
            label="this plan",
        )
    unit = "predicted KL divergence, nats a token (log)" if facts.plan.prediction else "predicted cost, no unit (log)"
    axes.set_xlabel(unit)
    axes.set_ylabel("measured KL divergence,\nnats a token (log)")
    axes.grid(True, which="major")
    rank = facts.rank_correlation
    axes.set_title("Predicted against measured" + (f" (rank correlation {rank:.2f})" if rank is not None else ""))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
