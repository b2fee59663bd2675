"""quality.png: KL divergence over bits per weight, a panel a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.bench import Row

# Okabe-Ito, told apart by colour-blind readers; a probed plan's is the thick black line.
STYLE = {
    "probed, repaired": ("#E69F00", "*", 2.0),
    "probed": ("#000000", "o", 2.4),
    "default": ("#0072B2", "s", 1.8),
    "llama-quantize": ("#D55E00", "^", 1.2),
    "the paper's recipe": ("#CC79A7", "v", 1.2),
    "the paper's release": ("#CC79A7", "P", 0.8),
    "REAP 75% + llama-quantize": ("#009E73", "D", 1.2),
    "REAP 50% + llama-quantize": ("#009E73", "d", 0.8),
    "uniform": ("#999999", ".", 1.0),
}


def plot(rows: Sequence[Row], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(r.model for r in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(4.6 * len(models), 4.6), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for variant, (colour, marker, width) in STYLE.items():
            points = sorted({(r.bpw, r.mean_kld) for r in rows if r.model == model and r.variant == variant})
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=marker, lw=width, ms=5, label=variant)
        axis.set_yscale("log")
        axis.set_title(model)
        axis.set_xlabel("bits per weight of the original's parameters")
        axis.grid(True, which="both", alpha=0.25)
    axes[0][0].set_ylabel("mean KL divergence from the original (nats)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(out, dpi=130)
    plt.close(figure)
