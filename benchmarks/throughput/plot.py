"""throughput.png: nanoseconds of the processor a weight, by stage, at each type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe-Ito, told apart by colour-blind readers.
COLOURS = {"quantize": "#000000", "decode": "#E69F00", "read": "#0072B2", "checksum": "#009E73", "write": "#CC79A7"}


def plot(rows: Sequence[Any], out: Path) -> None:
    """Bars of the runs by type; what is not the kernel is drawn again on a scale of its own."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted((row for row in rows if row.what == "types"), key=lambda row: row.quantize / row.weights)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, stages in zip(axes, (tuple(COLOURS), tuple(COLOURS)[1:]), strict=True):
        below = [0.0] * len(rows)
        for stage in stages:
            heights = [getattr(row, stage) / row.weights * 1e9 for row in rows]
            axis.bar(range(len(rows)), heights, bottom=below, color=COLOURS[stage], label=stage)
            below = [a + b for a, b in zip(below, heights, strict=True)]
        axis.set_xticks(range(len(rows)), [row.type for row in rows], rotation=60)
        axis.set_ylabel("ns of one core a weight")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_title("all stages", fontsize=10)
    axes[1].set_title("without the kernel", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, dpi=130)
    plt.close(figure)
