"""sensitivity.png: measured over predicted KL divergence, a row a model, a column a kind of prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.sensitivity.tried import KINDS, NEAR, RANDOM, Tried

STYLE = {RANDOM: ("#D55E00", "random types"), NEAR: ("#0072B2", "near chosen plans")}


def scatter(rows: Sequence[Tried], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    models = list(dict.fromkeys(r.model for r in rows))
    figure, axes = plt.subplots(len(models), len(KINDS), figsize=(12, 3.2 * len(models)), squeeze=False)
    for line, model in zip(axes, models, strict=True):
        for axis, kind in zip(line, KINDS, strict=True):
            for plans, (colour, label) in STYLE.items():
                some = [r for r in rows if r.model == model and r.plans == plans]
                axis.scatter([r.predicted[kind] for r in some], [r.measured for r in some], c=colour, label=label, s=24)
            axis.set(xscale="log", yscale="log", xlabel=f"predicted: {kind}", title=model)
            axis.grid(True, which="both", alpha=0.25)
            if kind != KINDS[0]:  # an error is not in nats
                axis.axline((0.01, 0.01), (0.1, 0.1), color="#999999", lw=1)
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(LogLocator(subs=(1, 2, 5)))
                side.set_major_formatter(FormatStrFormatter("%g"))
                side.set_minor_formatter(NullFormatter())
        line[0].set_ylabel("measured mean KL divergence (nats)")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)
