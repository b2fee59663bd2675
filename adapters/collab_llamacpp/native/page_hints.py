"""Tell the page cache which experts a token is about to read (cb_eval), for files that are larger than memory."""

from __future__ import annotations

import ctypes
import mmap
import re

import numpy as np

from collab_llamacpp.native.model import MUL_MAT_ID, read_tensor, tensor_at
from collab_llamacpp.native.observe import Observer
from collab_plugin.engines.ggml_structs import GgmlTensor

_OP, _NAME = GgmlTensor.op.offset, GgmlTensor.name.offset
_EXPERTS = re.compile(rb"^blk\.(\d+)\.ffn_(?:up|gate|down|gate_up)_exps\.weight$")
AVAILABLE = all(hasattr(mmap, name) for name in ("MADV_WILLNEED", "MADV_RANDOM", "MADV_NORMAL"))
"""Whether this system has the calls."""


class PageHints(Observer):
    """For a model that llama.cpp has mapped and computes on the processor. When a layer's router has chosen, the pages
    of the chosen experts are asked for (MADV_WILLNEED), all at once and no others: while the layer is computed, its
    experts are mapped as read at random (MADV_RANDOM), so that a missing page does not bring the pages around it, which
    are other experts'. Afterwards they are mapped as usual (MADV_NORMAL): Linux from 6.3 on does not look at when pages
    of a random mapping were used when it chooses which ones leave (vma_has_recency in mm/internal.h).

    Addresses are known from the second pass on. ``asked``: bytes that were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
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
            for expert in np.unique(read_tensor(address)[0, 0]).tolist():
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
