"""When tokens of an expert are computed together, from blocks that ggml unpacks once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
TILE = 8
"""Tokens of an expert from which ggml does so (ggml-cpu/tiled), for K and IQ types."""


@dataclass(frozen=True)
class TileCost:
    """Seconds that ggml takes for one expert: for each token (``token``), and for a ``tile`` of 8; ``sorting``: what it
    takes to compute pairs sorted by expert, however few they are."""

    token: float
    tile: float
    sorting: float

    def filled_up(self, rows: I64) -> NDArray[np.bool_]:
        """Whether to compute tokens of an expert again until there are 8, by how many chose it."""
        return np.asarray((rows < TILE) & (rows * self.token > self.tile))

    def gain(self, rows: I64) -> float:
        """Seconds saved by tiles that are full or filled up."""
        spared = rows * self.token - -(-rows // TILE) * self.tile
        return float(spared[spared > 0].sum()) - self.sorting


def tile_cost(one: float, seven: float, eight: float) -> TileCost:
    """Of the seconds that calls with so many tokens of one expert took. A call takes some time whatever it computes, so
    that only differences say what a token costs."""
    token = max(seven - one, 0.0) / (TILE - 2)
    sorting = max(one - token, 0.0)
    return TileCost(token, max(eight - sorting, 0.0), sorting)
