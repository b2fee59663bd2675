"""Whether an expert is computed as it lies, or first brought into another form or memory: whichever takes less time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 3


@dataclass(frozen=True)
class MissCost:
    """Seconds for one expert. ``copy``: bringing its weights where they are computed ``fast``. ``host`` and ``fast``:
    computing two numbers of ``rows`` of activations, where they lie and there; between and beyond them time grows
    evenly."""

    rows: tuple[int, int]
    copy: float
    host: tuple[float, float]
    fast: tuple[float, float]

    def copies(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each number of rows, whether bringing an expert there is the faster way."""
        return np.asarray(self.copy + self._at(self.fast, rows) < self._at(self.host, rows))

    def _at(self, times: tuple[float, float], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        few, many = self.rows
        slope = max(times[1] - times[0], 0.0) / (many - few)
        return np.asarray(times[0] + slope * (rows - few), np.float64)


def measured_cost(
    rows: tuple[int, int],
    copy: Callable[[], object],
    host: Callable[[int], object],
    fast: Callable[[int], object],
    finish: Callable[[], None],
) -> MissCost:
    """Time ``copy()``, ``host(rows)`` and ``fast(rows)``, the shortest of three; ``finish`` waits for the device."""
    few, many = rows
    return MissCost(
        rows,
        shortest(copy, finish),
        (shortest(lambda: host(few), finish), shortest(lambda: host(many), finish)),
        (shortest(lambda: fast(few), finish), shortest(lambda: fast(many), finish)),
    )


def shortest(work: Callable[[], object], finish: Callable[[], None] = lambda: None) -> float:
    """Seconds that ``work`` takes, of three rounds the shortest; ``finish`` waits for what it set going."""
    work()  # compiles, and touches memory
    finish()
    found = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        work()
        finish()
        found.append(time.perf_counter() - begun)
    return min(found)
