"""One look for all plots: dark on white, legible, and distinct for colour-blind readers (Okabe and Ito's colours)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from collab_plugin.reports.number_words import clean

DPI = 144
WIDTH = 11.0
"""Inches, so that a plot is 1,584 pixels wide."""

BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY, YELLOW, INK, GREY = "#56B4E9", "#F0E442", "#222222", "#8A8A8A"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#7A5C00", GREY, YELLOW)

# Any: which keys the stubs know depends on matplotlib's version.
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "grid.color": "#E2E2E2",
    # Names of models and rivals are text, whatever dollar signs they hold.
    "text.parse_math": False,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw with our style and matplotlib's defaults, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width; ``height`` in inches."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def png(draw: Callable[[], Figure]) -> bytes:
    """Return what ``draw`` draws as PNG."""
    with look():
        out = io.BytesIO()
        draw().savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()


def label(text: str, longest: int = 44) -> str:
    """Return one line of text that the font can draw: other characters become a box."""
    known = _characters()
    line = "".join(c if c == " " or ord(c) in known else "□" for c in clean(text))
    return line if len(line) <= longest else line[: longest - 1] + "…"


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def plain(value: float, position: object = None) -> str:
    """A tick's label without powers of ten."""
    return f"{value:g}"


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Make an axis logarithmic from below ``low`` to above ``high``, with plain numbers at its ticks."""
    span = max(high / low, 1.5)
    margin = span**0.08
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / margin, high * margin)
    decades = 10 if span > 1000 else (1, 2, 5) if span > 12 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(subs=decades if isinstance(decades, tuple) else (1,), numticks=30))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


def byte_unit(largest: float) -> tuple[str, float]:
    """Return the unit in which ``largest`` bytes are at least 1, and its size."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= factor:
            return unit, factor
    return "bytes", 1.0
