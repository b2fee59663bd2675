"""vllm.png: what loading takes and how fast the loaded model is, over the share of experts kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe-Ito, told apart by colour-blind readers; ours is black.
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"
COLOURS = (BLUE, ORANGE, BLACK)
PANELS = (
    ("load_s", "loading (s)"),
    ("asked_mb", "read (MB)"),
    ("peak_mb", "peak memory of loading (MB)"),
    ("tokens_s", "tokens a second"),
)


def plot(rows: Sequence[Any], out: Path) -> None:
    """A panel a figure: bars are medians, whiskers reach from the smallest to the largest round."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ways = list(dict.fromkeys(r.way for r in rows))
    shares = sorted({r.keep for r in rows}, reverse=True)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 4))
    for axis, (name, label) in zip(axes, PANELS, strict=True):
        for number, way in enumerate(ways):
            for place, keep in enumerate(shares):
                values = [getattr(r, name) for r in rows if (r.way, r.keep) == (way, keep)]
                if not values:
                    continue
                middle = statistics.median(values)
                spread = [[middle - min(values)], [max(values) - middle]]
                at = place + 0.27 * (number - 1)
                first = way if place == 0 else None
                axis.bar(at, middle, 0.25, yerr=spread, color=COLOURS[number], ecolor="grey", capsize=2, label=first)
        axis.set_xticks(range(len(shares)), [f"{keep:.0%}" for keep in shares])
        axis.set_xlabel("experts kept")
        axis.set_title(label, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(out, dpi=130)
    plt.close(figure)
