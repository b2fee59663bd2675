"""Tell the page cache which experts a token is about to read, and which can leave (cb_eval), for files that are larger
than memory."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys

import numpy as np

from collab_llamacpp.native.kept_pages import KeptPages
from collab_llamacpp.native.model import MUL_MAT_ID, read_tensor, tensor_at
from collab_llamacpp.native.observe import Observer
from collab_plugin.engines.ggml_structs import GgmlTensor
from collab_plugin.placement.policy import PlacementPolicy
from collab_plugin.placement.usable_memory import usable_memory

_OP, _NAME = GgmlTensor.op.offset, GgmlTensor.name.offset
_EXPERTS = re.compile(rb"^blk\.(\d+)\.ffn_(?:up|gate|down|gate_up)_exps\.weight$")
AVAILABLE = all(hasattr(mmap, name) for name in ("MADV_WILLNEED", "MADV_RANDOM", "MADV_NORMAL"))
"""Whether this system has the calls."""
_PAGEOUT = 21 if sys.platform == "linux" else None
"""MADV_PAGEOUT, Linux 5.4 and later, of files that one may write or owns; Python's mmap does not name it."""

_SPARE, _SPARE_SHARE = 16 * 2**20, 0.02
"""Bytes, and share of the rest, that stay the system's: with less it begins to search for pages itself."""


def room_for_experts(rest: int) -> int:
    """Bytes of experts that stay in memory beside ``rest`` bytes of the file; looked at once all else is allocated."""
    return max(int((1 - _SPARE_SHARE) * (usable_memory() - rest - _SPARE)), 0)


class PageHints(Observer):
    """For a model that llama.cpp has mapped and computes on the processor. When a layer's router has chosen, the pages
    of the chosen experts are asked for (MADV_WILLNEED), all at once and no others: while the layer is computed, its
    experts are mapped as read at random (MADV_RANDOM), so that a missing page does not bring the pages around it, which
    are other experts'. Afterwards they are mapped as usual (MADV_NORMAL): Linux from 6.3 on does not look at when pages
    of a random mapping were used when it chooses which ones leave (vma_has_recency in mm/internal.h).

    With ``policy`` the experts that it thinks worth least leave (MADV_PAGEOUT) before others come, where all that were
    used are larger than the memory that is left beside ``rest`` bytes of the file that every token reads. Else the page
    cache chooses, which keeps what was used lately, roughly, and has to search for it (docs/placement.md).

    Addresses are known from the second pass on. ``asked``, ``left``: bytes that were asked for, and that left.
    ``room``: bytes of experts that the policy keeps.
    """

    def __init__(self, policy: PlacementPolicy | None = None, rest: int = 0) -> None:
        super().__init__()
        self.asked = self.left = self.room = 0
        self._policy, self._rest = policy, rest
        self._kept: KeptPages | None = None
        self._experts: dict[int, dict[int, tuple[int, int]]] = {}  # layer -> address of the data -> bytes, experts
        self._random: list[tuple[int, int]] = []  # what is mapped as read at random now: address, bytes
        self._advise = ctypes.CDLL(None, use_errno=True).madvise
        self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def wanted(self, address: int) -> bool:
        if ctypes.c_int.from_address(address + _OP).value == MUL_MAT_ID:
            self._remember(tensor_at(tensor_at(address).src[0]))
            return False
        node = self.node(address)
        return node is not None and node[0] == b"ffn_moe_topk" and node[1] in self._experts

    def take(self, address: int) -> bool:
        node = self.node(address)
        if node is not None and node[0] == b"ffn_moe_topk":
            self._map_as_usual()
            chosen = np.unique(read_tensor(address)[0, 0]).tolist()
            self._make_room(node[1], chosen)
            for expert in chosen:
                for start, (size, _) in self._experts.get(node[1], {}).items():
                    self._map_as_random(start + expert * size, size)
                    self._tell(start + expert * size, size, mmap.MADV_WILLNEED)
                    self.asked += size
        return True

    def _remember(self, weights: GgmlTensor) -> None:
        found = _EXPERTS.match(weights.name)
        if not found or not weights.data:
            return
        layer = self._experts.setdefault(int(found[1]), {})
        if weights.data not in layer:
            size, experts = int(weights.nb[2]), int(weights.ne[2])
            layer[weights.data] = size, experts
            self._map_as_random(weights.data, size * experts)

    def _make_room(self, layer: int, chosen: list[int]) -> None:
        if self._policy is None or _PAGEOUT is None:
            return
        if self._kept is None:
            sizes = {n: sum(size for size, _ in found.values()) for n, found in self._experts.items()}
            experts = max(number for found in self._experts.values() for _, number in found.values())
            self.room = room_for_experts(self._rest)
            self._kept = KeptPages(self._policy, sizes, experts, self.room)
        for gone, expert in self._kept.leaving(layer, chosen):
            for start, (size, _) in self._experts[gone].items():
                first = start + expert * size
                # Pages that it shares with its neighbours stay.
                whole = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
                if first + size - whole >= mmap.PAGESIZE:
                    self._advise(whole, (first + size - whole) // mmap.PAGESIZE * mmap.PAGESIZE, _PAGEOUT)
                    self.left += size

    def _map_as_random(self, start: int, size: int) -> None:
        self._tell(start, size, mmap.MADV_RANDOM)
        self._random.append((start, size))

    def _map_as_usual(self) -> None:
        for start, size in self._random:
            self._tell(start, size, mmap.MADV_NORMAL)
        self._random.clear()

    def _tell(self, start: int, size: int, advice: int) -> None:
        """A hint: where the memory is no mapping of a file the system refuses, and nothing is lost."""
        first = start - start % mmap.PAGESIZE
        self._advise(first, start + size - first, advice)
