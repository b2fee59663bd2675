"""Which experts' pages stay in memory where a model is larger than it: a policy decides, not the page cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from collab_plugin.placement.policy import F64, PlacementPolicy

Expert = tuple[int, int]
"""Layer and number."""


class KeptPages:
    """``sizes``: bytes of one expert, by layer; ``experts``: how many a layer has; ``room``: bytes of experts that
    memory holds. All layers share the room, and what a layer used may leave as soon as the next one chooses (protecting
    it for a whole step hits up to 2 points less where a step uses a third of the room; docs/placement.md has the runs).
    So every policy is selective here: an expert is read for its use and need not stay.

    Nothing is known of what lies in memory at first, so only experts that were used leave.
    """

    def __init__(self, policy: PlacementPolicy, sizes: Mapping[int, int], experts: int, room: int) -> None:
        if policy.dynamic is None:
            raise ValueError(f"policy {policy.name!r} moves nothing")
        self._row = {layer: row for row, layer in enumerate(sorted(sizes))}
        self._layers = sorted(sizes)
        self._bytes = np.array([sizes[layer] for layer in self._layers], np.int64)
        shape = len(sizes), experts
        self._ranking = policy.dynamic(np.zeros(shape), policy.values)
        self._used = np.zeros(shape, np.bool_)
        self._held = np.zeros(shape, np.bool_)
        self._room = room
        self._last = -1

    def leaving(self, layer: int, chosen: Sequence[int]) -> list[Expert]:
        """What makes room when ``chosen`` of ``layer`` are read: those that are worth least, none of ``chosen``."""
        row = self._row[layer]
        if row <= self._last:
            self._ranking.saw(self._used)
            self._used[:] = False
        self._last = row
        ids = np.asarray(chosen, np.int64)
        self._used[row, ids] = True
        self._held[row, ids] = True
        over = int(self._held.sum(1) @ self._bytes) - self._room
        return self._least(over, row, ids) if over > 0 else []

    def _least(self, over: int, row: int, in_use: NDArray[np.int64]) -> list[Expert]:
        free = self._held.copy()
        free[row, in_use] = False
        rows, ids = np.nonzero(free)
        worth: F64 = self._ranking.worth[rows, ids]
        # No more can be needed than of the smallest.
        most = min(len(rows), -(-over // int(self._bytes.min())))
        first = np.argpartition(worth, most - 1)[:most] if 0 < most < len(rows) else np.arange(len(rows))
        first = first[np.argsort(worth[first], kind="stable")]
        freed = np.cumsum(self._bytes[rows[first]])
        first = first[: int(np.searchsorted(freed, over)) + 1]
        self._held[rows[first], ids[first]] = False
        return [(self._layers[r], int(e)) for r, e in zip(rows[first], ids[first], strict=True)]
