"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby


def clean(text: str) -> str:
    """Return one printable line: names come from files of anyone, and may hold escape codes or line breaks."""
    return "".join(c if c.isprintable() else "□" for c in " ".join(text.split()))


def size(count: float) -> str:
    """Bytes with three digits and a decimal unit: 103 GB, 7.25 MB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{digits(count / factor)} {unit}"
    return f"{count:.0f} bytes"


def quantity(count: float) -> str:
    """A count with three digits: 671 billion, 23.2 million."""
    for unit, factor in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if abs(count) >= factor:
            return f"{digits(count / factor)} {unit}"
    return f"{count:.0f}"


def digits(value: float) -> str:
    """A value of at least 1 with three digits: 1.53, 15.3, 153, 1530."""
    return f"{value:.{max(0, 2 - (value >= 9.995) - (value >= 99.95))}f}"


def exact(count: int | None) -> str:
    """A whole number with thousands separators; a dash for none."""
    return "–" if count is None else f"{count:,}"


def kld(value: float | None) -> str:
    """A KL divergence with four significant digits; a dash for none."""
    return "–" if value is None else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share in percent with one decimal; a dash for none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def share_of(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent; a dash of nothing: a plan from anyone may hold zeros."""
    return percent(part / whole if whole else None)


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs joined: 0, 3–5, 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def like_rows(rows: Sequence[tuple[int, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    """Merge consecutive numbered rows of equal cells: (0, a), (1, a), (2, b) becomes ("0–1", a), ("2", b)."""
    merged = []
    for cells, group in groupby(rows, key=lambda row: row[1]):
        merged.append((ranges(number for number, _ in group), cells))
    return merged
