"""Whether an expert outside the fast memory is computed where it lies or copied: whichever takes less time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS = (1, 16)
_ROUNDS = 3


@dataclass(frozen=True)
class MissCost:
    """Seconds for one expert. ``copy``: bringing its weights to the device; ``host`` and ``fast``: computing 1 and 16
    rows of activations in host memory and on the device; between and beyond them time grows evenly."""

    copy: float
    host: tuple[float, float]
    fast: tuple[float, float]

    def copies(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each number of rows, whether copying an expert and computing them on the device is the faster way."""
        return np.asarray(self.copy + _at(self.fast, rows) < _at(self.host, rows))


def _at(times: tuple[float, float], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    slope = max(times[1] - times[0], 0.0) / (ROWS[1] - ROWS[0])
    return np.asarray(times[0] + slope * (rows - ROWS[0]), np.float64)


def measured_cost(
    copy: Callable[[], object], host: Callable[[int], object], fast: Callable[[int], object], finish: Callable[[], None]
) -> MissCost:
    """Time ``copy()``, ``host(rows)`` and ``fast(rows)``, the shortest of three; ``finish`` waits for the device."""
    one, many = ROWS
    return MissCost(
        _shortest(copy, finish),
        (_shortest(lambda: host(one), finish), _shortest(lambda: host(many), finish)),
        (_shortest(lambda: fast(one), finish), _shortest(lambda: fast(many), finish)),
    )


def _shortest(work: Callable[[], object], finish: Callable[[], None]) -> float:
    work()  # compiles, and touches memory
    finish()
    found = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        work()
        finish()
        found.append(time.perf_counter() - begun)
    return min(found)
