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
AVAILABLE = all(hasattr(mmap, name) for name in ("MADV_WILLNEED", "MADV_RANDOM"))
"""Whether this system has the calls."""


class PageHints(Observer):
    """For a model that llama.cpp has mapped and computes on the processor. When a layer's router has chosen, the pages
    of the chosen experts are asked for (MADV_WILLNEED), all at once and no others: experts are mapped as read at random
    (MADV_RANDOM), so that a missing page does not bring the pages around it, which are other experts'.

    Addresses are known from the second pass on. ``asked``: bytes that were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self._experts: dict[int, dict[int, tuple[int, int]]] = {}  # layer -> address of the data -> bytes, experts
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
            for expert in np.unique(read_tensor(address)[0, 0]).tolist():
                for start, (size, _) in self._experts.get(node[1], {}).items():
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
            self._tell(weights.data, size * experts, mmap.MADV_RANDOM)

    def _tell(self, start: int, size: int, advice: int) -> None:
        """A hint: where the memory is no mapping of a file the system refuses, and nothing is lost."""
        first = start - start % mmap.PAGESIZE
        self._advise(first, start + size - first, advice)
