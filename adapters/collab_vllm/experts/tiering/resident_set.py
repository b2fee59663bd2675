"""Which experts of a layer are in the fast memory, and which of them give way. Knows no tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from collab_plugin.placement.policy import Mask, Residency

Move = tuple[int, int]
"""An expert, and the slot of the fast memory that it comes into."""


class ResidentSet:
    """``room`` slots, which hold the experts ``start`` at first. ``residency``: what judges experts while the model
    runs; None: nothing moves. ``selective``: an expert comes in only for one that is worth less.

    ``slot`` i32[experts]: where each expert is, -1 for those that are in host memory alone.
    """

    def __init__(
        self, experts: int, room: int, start: Sequence[int], residency: Residency | None, selective: bool = False
    ) -> None:
        self.slot: NDArray[np.int32] = np.full(experts, -1, np.int32)
        self.slot[list(start)] = np.arange(len(start))
        self._held: NDArray[np.int32] = np.full(room, -1, np.int32)
        self._held[: len(start)] = list(start)
        self.residency = residency
        self.room = room
        self._selective = selective

    @property
    def experts(self) -> list[int]:
        """Those in the fast memory, by number."""
        return sorted(int(expert) for expert in self._held if expert >= 0)

    def saw(self, chosen: Mask) -> None:
        """A step of the model chose the experts ``chosen`` bool[experts]."""
        if self.residency is not None:
            self.residency.saw(chosen[None])

    def bring_in(self, wanted: Sequence[int], chosen: Mask) -> list[Move]:
        """Make room for ``wanted``, the first before the others. What leaves is worth least, of equal ones that with
        the highest number, and not ``chosen`` in this step; when nothing else is left, the rest stays out."""
        if self.residency is None:
            return []
        if self._selective:
            return self.rearrange(len(wanted), wanted, chosen)
        worth = self.residency.worth[0]
        leaving = [expert for expert in self.experts if not chosen[expert]]
        leaving.sort(key=lambda expert: (worth[expert], -expert))
        return self._exchange(wanted, leaving)

    def rearrange(self, most: int, among: Sequence[int] | None = None, stay: Mask | None = None) -> list[Move]:
        """Bring in up to ``most`` experts that are worth more than ones that are in, the best for the worst; of those
        ``among``, None: of all. Those that ``stay`` do not leave."""
        if self.residency is None:
            return []
        worth = self.residency.worth[0]
        inside = sorted(self.experts, key=lambda expert: (worth[expert], -expert))
        outside = [int(e) for e in np.argsort(-worth, kind="stable") if self.slot[e] < 0]
        outside = outside if among is None else [expert for expert in outside if expert in among]
        free = self.room - len(inside)
        inside = inside if stay is None else [expert for expert in inside if not stay[expert]]
        better = [new for new, old in zip(outside[free:], inside, strict=False) if worth[new] > worth[old]]
        return self._exchange((outside[:free] + better)[:most], inside)

    def _exchange(self, coming: Sequence[int], leaving: Sequence[int]) -> list[Move]:
        free = [int(slot) for slot in np.flatnonzero(self._held < 0)]
        moves = []
        going = iter(leaving)
        for expert in coming:
            if free:
                slot = free.pop(0)
            elif (old := next(going, None)) is not None:
                slot = int(self.slot[old])
                self.slot[old] = -1
            else:
                break
            self.slot[expert], self._held[slot] = slot, expert
            moves.append((expert, slot))
        return moves
