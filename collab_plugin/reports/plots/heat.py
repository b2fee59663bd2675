"""Heat map of expert importance, layers × experts, dropped ones marked."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from collab_plugin.reports.expert_importance import ImportanceMap
from collab_plugin.reports.plots.style import INK, RED, new_figure

UNSEEN = "#BDBDBD"
_TOP = 99.5
"""Percentile at which the darkest shade is reached, so that a few giants do not pale all others."""
_MARGINS = 2.2
"""Inches that labels, title, scale and legend take of the height."""


def importance_plot(data: ImportanceMap) -> Figure:
    """Colour is the criterion's value, a mark a dropped expert, grey one that calibration never selected."""
    layers = len(data.layers)
    row = min(max(0.115, 2.0 / layers), 0.36)
    figure = new_figure(layers * row + _MARGINS)
    axes = figure.add_subplot()
    if data.scores is None:
        axes.imshow(np.zeros_like(data.kept, float), cmap=ListedColormap(["#D6E6F4"]), aspect="auto")
    else:
        values = np.ma.masked_array(data.scores, data.unseen)
        low, high = (
            min(0.0, float(data.scores.min())),
            float(np.percentile(data.scores, _TOP if data.scores.size > 1000 else 100)),
        )
        image = axes.imshow(values, cmap="Blues", aspect="auto", interpolation="nearest", vmin=low, vmax=high)
        extend = "max" if data.scores.max() > high else "neither"
        bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=max(8, 3 * layers * row), fraction=0.03, extend=extend)
        bar.set_label(f"importance ({data.criterion})")
        bar.outline.set_visible(False)
    axes.set_facecolor(UNSEEN)
    _mark(axes, data)
    _ticks(axes, data)
    _grid(axes, data)
    axes.set_title(_title(data))
    figure.legend(handles=_legend(data), loc="outside lower center", ncols=3)
    return figure


def _title(data: ImportanceMap) -> str:
    layers, experts = data.kept.shape
    dropped = int((~data.kept).sum())
    return f"Importance of {layers} × {experts} experts, {f'{dropped:,}' if dropped else 'none'} of them dropped"


def _mark(axes: Axes, data: ImportanceMap) -> None:
    """The middle of a dropped expert's cell is painted over; what is around it stays visible."""
    layers, experts = data.kept.shape
    wide = 1 if experts > 64 else 3
    middle = np.zeros((3, wide), bool)
    middle[1, wide // 2] = True
    marks = np.ma.masked_equal(np.kron(~data.kept, middle), False)
    axes.imshow(
        marks,
        cmap=ListedColormap([RED]),
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, experts - 0.5, layers - 0.5, -0.5),
    )


def _ticks(axes: Axes, data: ImportanceMap) -> None:
    layers, experts = data.kept.shape
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128) if experts / s <= 34)
    axes.set_xticks(range(0, experts, step))
    every = 1 if layers <= 16 else 5
    shown = [i for i, layer in enumerate(data.layers) if layer % every == 0]
    axes.set_yticks(shown, [str(data.layers[i]) for i in shown])
    axes.set_xlabel("expert (its number in the original)")
    axes.set_ylabel("layer")
    axes.tick_params(length=2, labelsize=9)
    axes.spines[:].set_visible(False)


def _grid(axes: Axes, data: ImportanceMap) -> None:
    """White lines between cells that are wide enough; dark ones between the router's groups."""
    layers, experts = data.kept.shape
    if experts <= 64:
        axes.set_xticks(np.arange(0.5, experts - 1), minor=True)
        axes.set_yticks(np.arange(0.5, layers - 1), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
        axes.tick_params(which="minor", length=0)
    if data.groups is not None and data.groups > 1:
        for border in range(experts // data.groups, experts, experts // data.groups):
            axes.axvline(border - 0.5, color=INK, linewidth=1.0)


def _legend(data: ImportanceMap) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = []
    if not data.kept.all():
        handles.append(Line2D([], [], color=RED, marker="s", linestyle="none", markersize=6, label="dropped"))
    if data.unseen.any():
        handles.append(Patch(color=UNSEEN, label="never selected in calibration"))
    if data.scores is None:
        handles.append(Patch(color="#D6E6F4", label="importance not at hand"))
    if data.groups is not None and data.groups > 1:
        handles.append(Line2D([], [], color=INK, linewidth=1.0, label="border of expert groups"))
    return handles
