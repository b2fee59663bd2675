"""Random errors of weight matrices, as large as quantization's, without a matrix of every tensor's size."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
ROWS = 1024
"""Rows that are really random; the rows of a larger matrix repeat them with other signs of the columns."""


class RandomErrors:
    """What a fixed error E adds to the products and look-ups of a tensor; E_ij has mean 0 and the variance of row i.

    The same on every run. Columns get signs by tensor, slice and block of rows, so that no two errors go together.
    """

    def __init__(self) -> None:
        self._normal: dict[int, F32] = {}

    def product(self, name: str, index: int, x: F32, variance: F32) -> F32:
        """x E^T f32[tokens, rows] of inputs ``x`` f32[tokens, n] with slice ``index``, ``variance`` f32[rows]."""
        n, rows = x.shape[1], len(variance)
        if n not in self._normal:
            self._normal[n] = np.random.default_rng(n).standard_normal((ROWS, n), np.float32)
        found = np.empty((len(x), rows), np.float32)
        for block, start in enumerate(range(0, rows, ROWS)):
            part = found[:, start : start + ROWS]
            bits = np.random.default_rng((zlib.crc32(name.encode()), index, block)).integers(0, 2, n)
            signs = np.asarray(2 * bits - 1, np.float32)
            np.matmul(x * signs, self._normal[n][: part.shape[1]].T, out=part)
        found *= np.sqrt(variance)
        return found

    def rows(self, name: str, ids: NDArray[np.int32], n: int, variance: F32) -> F32:
        """Rows ``ids`` of E f32[ids, n], ``variance`` f32[ids]."""
        different, places = np.unique(ids, return_inverse=True)
        seed = zlib.crc32(name.encode())
        drawn = [np.random.default_rng((seed, int(row))).standard_normal(n, np.float32) for row in different]
        return np.asarray(np.stack(drawn)[places] * np.sqrt(variance)[:, None], np.float32)
