"""Watching the tensors of a running graph (cb_eval)."""

from __future__ import annotations

import ctypes
import re
from abc import ABC, abstractmethod
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.native.model import read_tensor
from collab_plugin.engines.ggml_structs import GgmlTensor

# Node names: src/llama-graph.cpp build_moe_ffn (0c1e57098), and in the models' graphs the residual stream after a
# layer's attention and after the layer.
_NODE = re.compile(
    rb"^(ffn_inp|l_out|ffn_moe_(?:topk|weights|weights_softmax|weights_norm|weights_scaled|weighted|down))-(\d+)$"
)
_NAME = GgmlTensor.name.offset


class Observer(ABC):
    """``callback`` is what a context takes as cb_eval; an exception in it is kept in ``error``."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._nodes: dict[bytes, tuple[bytes, int] | None] = {}
        self.callback = llama.llama_cpp.ggml_backend_sched_eval_callback(self._call)

    @abstractmethod
    def wanted(self, address: int) -> bool:
        """Whether to compute up to this tensor and show it to `take`."""

    @abstractmethod
    def take(self, address: int) -> bool:
        """Look at a computed tensor; False ends the computation."""

    def finish(self) -> None:
        """Raise what went wrong in a callback."""
        if self.error is not None:
            raise self.error

    def node(self, address: int) -> tuple[bytes, int] | None:
        """A MoE or residual stream node's name and layer; None for any other tensor."""
        name = ctypes.string_at(address + _NAME)
        if name not in self._nodes:
            found = _NODE.match(name)
            self._nodes[name] = (found[1], int(found[2])) if found else None
        return self._nodes[name]

    def _call(self, address: int, ask: bool, _: Any) -> bool:
        # An exception must not escape into C.
        try:
            return self.wanted(address) if ask else self.take(address)
        except BaseException as error:
            self.error = self.error or error
            return not ask


class RoutingObserver(Observer):
    """``chosen[layer]``: one i32[tokens, k] a micro-batch, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: dict[int, list[NDArray[np.int32]]] = {}

    def wanted(self, address: int) -> bool:
        node = self.node(address)
        return node is not None and node[0] == b"ffn_moe_topk"

    def take(self, address: int) -> bool:
        node = self.node(address)
        if node is not None and node[0] == b"ffn_moe_topk":
            self.chosen.setdefault(node[1], []).append(read_tensor(address)[0, 0].copy())
        return True
