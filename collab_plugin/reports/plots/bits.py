"""Heat map of bits a weight, parts × layers."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from collab_plugin.formats.tensor_names import Role
from collab_plugin.reports.plots.style import INK, new_figure, plain
from collab_plugin.reports.sizes import BitsMap

_LEFT_ALONE = (Role.NORM, Role.ROUTER, Role.ROUTER_BIAS)
_LOWEST, _HIGHEST = 1.5, 9.0
_ANNOTATED = 14
"""So many columns or fewer leave room for the figure in every cell."""


def bits_plot(data: BitsMap) -> Figure:
    """One row a part, one column a layer; the embedding stands before the first layer, the output after the last."""
    parts = [part for part in _order(data) if part not in _LEFT_ALONE]
    values, columns = grid(data, parts)
    figure = new_figure(1.9 + 0.42 * len(parts))
    axes = figure.add_subplot()
    norm = LogNorm(_LOWEST, _HIGHEST, clip=True)
    image = axes.imshow(np.ma.masked_invalid(values), cmap="viridis_r", norm=norm, aspect="auto")
    axes.set_yticks(range(len(parts)), parts)
    shown = _shown(columns)
    axes.set_xticks(shown, [columns[i] for i in shown])
    axes.tick_params(length=2, labelsize=10 if len(columns) <= 34 else 9)
    axes.set_xlabel("layer (in: embedding, out: output matrix)" if "in" in columns else "layer")
    axes.set_title("Bits a weight by layer and part")
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(parts) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    if len(columns) <= _ANNOTATED:
        _annotate(axes, values)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03, extend="max")
    bar.ax.yaxis.set_major_locator(FixedLocator([1.5, 2, 2.5, 3, 4, 5, 6, 8]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(plain))
    bar.set_label("bits a weight")
    bar.outline.set_visible(False)
    return figure


def _shown(columns: list[str]) -> list[int]:
    """Which columns to name: all, or every fifth layer that leaves the words at the ends room."""
    step, room = (1, 0) if len(columns) <= 34 else (5, 1)
    ends = [i for i, name in enumerate(columns) if not name.isdigit()]
    crowded = {i + shift for i in ends for shift in range(-room, room + 1)} - set(ends)
    return [i for i, name in enumerate(columns) if i in ends or (int(name) % step == 0 and i not in crowded)]


def _order(data: BitsMap) -> list[str]:
    """Embedding first, output last, between them the larger first."""
    ends = {str(Role.EMBEDDING): 0, str(Role.OUTPUT): 2}
    held = {part: sum(b.bytes for b in cells.values()) for part, cells in data.by_part().items()}
    return sorted(held, key=lambda part: (ends.get(part, 1), -held[part]))


def grid(data: BitsMap, parts: list[str]) -> tuple[NDArray[np.float64], list[str]]:
    """Return bits f64[parts, columns], NaN where a layer has no such part, and the columns' names."""
    columns: list[int | str] = list(data.layers)
    if None in data.by_part().get(Role.EMBEDDING, {}):
        columns.insert(0, "in")
    if None in data.by_part().get(Role.OUTPUT, {}):
        columns.append("out")
    values = np.full((len(parts), len(columns)), np.nan)
    for row, part in enumerate(parts):
        for layer, bits in data.by_part()[part].items():
            name = layer if layer is not None else {"embedding": "in", "output": "out"}.get(part)
            if name in columns:
                values[row, columns.index(name)] = bits.bits_per_weight
    return values, [str(name) for name in columns]


def _annotate(axes: Axes, values: NDArray[np.float64]) -> None:
    for (row, column), bits in np.ndenumerate(values):
        if np.isfinite(bits):
            ink = "white" if bits > 3.6 else INK
            axes.text(column, row, f"{bits:.2f}", ha="center", va="center", color=ink, fontsize=10)
