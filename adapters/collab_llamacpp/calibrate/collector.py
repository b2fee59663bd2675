"""Routing statistics and importance matrix from the tensors of a running graph (cb_eval)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from collab_llamacpp.native.model import MUL_MAT, MUL_MAT_ID, read_tensor, tensor_at
from collab_llamacpp.native.observe import Observer
from collab_plugin.engines.ggml_structs import GgmlTensor
from collab_plugin.errors import CollabError
from collab_plugin.quantize.rounded_inputs import BLOCKS, share_lost

F64 = NDArray[np.float64]
_OP = GgmlTensor.op.offset
_STREAM = (b"ffn_inp", b"l_out")
_TINY = 1e-30
# The output matrix too, which llama-imatrix leaves out unless told; a tied one has the embedding's name.
_MATRIX = re.compile(rb"^(?:blk\.|output\.weight$|token_embd\.weight$)")
_GATE = re.compile(r"^blk\.(\d+)\.ffn_gate_inp_shexp\.weight$")
_SOME = 64  # inputs of a product whose rounding is looked at
_MIN_ROWS = 16  # llama-imatrix passes over smaller batches (tools/imatrix/imatrix.cpp:237)


class Collector(Observer):
    """Accumulates over ubatches.

    ``counts[layer]`` i64[E], ``weights[layer]``, ``reap[layer]`` f64[E], ``tokens[layer]``;
    ``sums[tensor]`` f64[C, m] and ``seen[tensor]`` i64[C] as in ImatrixEntry. ``streams[node, layer]``: sum over tokens
    of 1 / ‖x‖² of the residual stream, and tokens, after the layer's attention ("ffn_inp") and after it ("l_out").
    ``gates[layer]`` f64[2]: sum of the squares of the sigmoid that the shared expert's output is multiplied with, and
    tokens, of layers that have one (ffn_gate_inp_shexp).
    ``rounding[tensor]`` f64[3]: sums of what inputs lose by rounding in blocks of 256 and of 32, and their number.
    With ``trace`` also ``chosen[layer]``: i16[tokens, k] a ubatch, in order.
    Weights are those applied to the expert's output: the last of ffn_moe_weights, _softmax, _norm,
    _scaled. The norm of ffn_moe_weighted is weight × ‖output‖, so REAP needs no further product.
    """

    def __init__(self, experts: int, weight_before_ffn: bool = False, trace: bool = False) -> None:
        super().__init__()
        self._trace = trace
        self.chosen: dict[int, list[NDArray[np.int16]]] = {}
        self.experts = experts
        # Llama-4 multiplies before the FFN: there the output of `down` carries the weight already.
        self.reap_node = b"ffn_moe_down" if weight_before_ffn else b"ffn_moe_weighted"
        self.counts: dict[int, NDArray[np.int64]] = {}
        self.weights: dict[int, F64] = {}
        self.reap: dict[int, F64] = {}
        self.tokens: dict[int, int] = {}
        self.sums: dict[str, F64] = {}
        self.seen: dict[str, NDArray[np.int64]] = {}
        self.streams: dict[tuple[str, int], tuple[float, int]] = {}
        self.rounding: dict[str, F64] = {}
        self.gates: dict[int, F64] = {}
        self._ids: dict[int, NDArray[np.int32]] = {}
        self._pending: dict[int, NDArray[np.float32]] = {}

    def finish(self) -> None:
        """Book the weights of the last ubatch; raise what went wrong in a callback."""
        for layer in list(self._pending):
            self._book_weights(layer)
        super().finish()

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays, between two batches."""
        for layer in list(self._pending):
            self._book_weights(layer)
        found: dict[str, NDArray[Any]] = {}
        for layer, count in self.counts.items():
            found[f"counts.{layer}"], found[f"tokens.{layer}"] = count, np.array(self.tokens[layer])
            found[f"weights.{layer}"], found[f"reap.{layer}"] = self.weights[layer], self.reap[layer]
        for name, sums in self.sums.items():
            found[f"sums.{name}"], found[f"seen.{name}"] = sums, self.seen[name]
            found[f"rounding.{name}"] = self.rounding[name]
        for (node, layer), (total, tokens) in self.streams.items():
            found[f"streams.{node}.{layer}"] = np.array([total, tokens])
        for layer, sums in self.gates.items():
            found[f"gates.{layer}"] = sums
        for layer, ids in self.chosen.items():
            found[f"chosen.{layer}"] = np.concatenate(ids)
        return found

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `state` gave."""
        for key, values in arrays.items():
            kind, _, name = key.partition(".")
            if kind in ("sums", "seen", "rounding"):
                getattr(self, kind)[name] = values
            elif kind == "streams":
                node, _, layer = name.rpartition(".")
                self.streams[node, int(layer)] = float(values[0]), int(values[1])
            elif kind == "chosen":
                self.chosen[int(name)] = [values]
            else:
                getattr(self, kind)[int(name)] = int(values) if kind == "tokens" else values

    def wanted(self, address: int) -> bool:
        op = ctypes.c_int.from_address(address + _OP).value
        if op == MUL_MAT_ID:
            return True
        if op == MUL_MAT:
            t = tensor_at(address)
            weight, x = tensor_at(t.src[0]), tensor_at(t.src[1])
            return bool(_MATRIX.match(weight.name) and x.ne[1] >= _MIN_ROWS and x.type == 0)
        node = self.node(address)
        return node is not None and (node[0] != b"ffn_moe_down" or self.reap_node == b"ffn_moe_down")

    def take(self, address: int) -> bool:
        node = self.node(address)
        if node is not None:
            values = read_tensor(address)
            if node[0] in _STREAM:
                self._take_stream(node[0].decode(), node[1], values)
            else:
                self._take_router(*node, values)
        op = ctypes.c_int.from_address(address + _OP).value
        if op in (MUL_MAT, MUL_MAT_ID):
            t = tensor_at(address)
            weight = tensor_at(t.src[0])
            name = weight.name.decode()
            if _MATRIX.match(weight.name):
                if op == MUL_MAT_ID:
                    self._take_experts(name, read_tensor(t.src[1])[0], read_tensor(t.src[2])[0, 0], weight.ne[2])
                else:
                    self._take_matrix(name, read_tensor(t.src[1]), weight.ne[2] * weight.ne[3])
                    if gate := _GATE.match(name):
                        self._take_gate(int(gate[1]), read_tensor(address))
        return True

    def _take_stream(self, node: str, layer: int, values: NDArray[Any]) -> None:
        """values f32[..., tokens, width]."""
        total, tokens = self.streams.get((node, layer), (0.0, 0))
        norms = np.square(values, dtype=np.float64).sum(-1)
        self.streams[node, layer] = total + float((1 / np.maximum(norms, _TINY)).sum()), tokens + norms.size

    def _take_gate(self, layer: int, values: NDArray[Any]) -> None:
        """values f32[..., tokens, 1], before the sigmoid."""
        squares = np.square(expit(values.astype(np.float64)))
        self.gates[layer] = self.gates.get(layer, 0) + np.array([squares.sum(), squares.size])

    # -- router

    def _take_router(self, node: bytes, layer: int, values: NDArray[Any]) -> None:
        if node == b"ffn_moe_topk":
            if layer in self._pending:
                self._book_weights(layer)
            ids = values[0, 0].copy()  # i32[tokens, k]
            self._ids[layer] = ids
            if self._trace:
                self.chosen.setdefault(layer, []).append(ids.astype(np.int16))
            zero = np.zeros(self.experts)
            self.counts[layer] = self.counts.get(layer, 0) + np.bincount(ids.ravel(), minlength=self.experts)
            self.tokens[layer] = self.tokens.get(layer, 0) + len(ids)
            self.weights.setdefault(layer, zero.copy())
            self.reap.setdefault(layer, zero.copy())
        elif node.startswith(b"ffn_moe_weights"):
            self._pending[layer] = values.reshape(self._ids[layer].shape).copy()
        elif node == self.reap_node:
            norms = np.sqrt(np.square(values[0], dtype=np.float64).sum(-1))  # f64[tokens, k]
            self.reap[layer] += self._by_expert(layer, norms)

    def _book_weights(self, layer: int) -> None:
        self.weights[layer] += self._by_expert(layer, self._pending.pop(layer))

    def _by_expert(self, layer: int, values: NDArray[Any]) -> F64:
        ids = self._ids[layer].ravel()
        sums: F64 = np.bincount(ids, np.asarray(values, np.float64).ravel(), minlength=self.experts).astype(np.float64)
        return sums

    # -- importance matrix, as tools/imatrix/imatrix.cpp:220-420

    def _take_experts(self, name: str, x: NDArray[np.float32], ids: NDArray[np.int32], experts: int) -> None:
        """x f32[tokens, 1 or k, n], ids i32[tokens, k]."""
        squares = np.square(x.reshape(-1, x.shape[-1]))
        order = np.argsort(ids.ravel(), kind="stable")
        rows = order // ids.shape[1] if x.shape[1] == 1 else order
        seen = np.bincount(ids.ravel(), minlength=experts)
        used = np.flatnonzero(seen)
        # Sums over runs of one expert: a one-hot matrix product would cost E times more.
        starts = (np.cumsum(seen) - seen)[used]
        sums = np.zeros((experts, x.shape[-1]))
        sums[used] = np.add.reduceat(squares[rows], starts, axis=0, dtype=np.float64)
        self._add(name, sums, seen)
        self._take_rounding(name, x)

    def _take_matrix(self, name: str, x: NDArray[np.float32], slices: int) -> None:
        """x f32[i3, i2, rows, n]; a 3-D weight (MLA) gets a vector a slice, a 2-D one the sum of all."""
        squares = np.square(x, dtype=np.float32).sum(2, dtype=np.float64).reshape(-1, x.shape[-1])
        by_slice = squares.reshape(-1, slices, x.shape[-1]).sum(0) if len(squares) % slices == 0 else squares
        rows = int(np.prod(x.shape[:-1])) // slices
        self._add(name, by_slice.reshape(1, -1), np.array([rows]))
        self._take_rounding(name, x)

    def _take_rounding(self, name: str, x: NDArray[np.float32]) -> None:
        """x f32[..., n], finite: some of its rows, evenly spread."""
        rows = x.reshape(-1, x.shape[-1])
        some = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SOME)).astype(int))]
        lost = [float(share_lost(some, b).sum()) if some.shape[1] % b == 0 else 0.0 for b in BLOCKS]
        self.rounding[name] = self.rounding.get(name, 0) + np.array([*lost, len(some)], np.float64)

    def _add(self, name: str, sums: NDArray[Any], seen: NDArray[np.int64]) -> None:
        if not np.isfinite(sums).all():
            raise CollabError(f"activations at {name} are not finite: the model's weights are damaged")
        self.sums[name] = self.sums.get(name, 0) + sums.astype(np.float64)
        self.seen[name] = self.seen.get(name, 0) + seen
