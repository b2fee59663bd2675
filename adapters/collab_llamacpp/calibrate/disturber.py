"""Random errors of chosen weights, and experts that may not be chosen, while a graph runs (cb_eval).

Many sequences run in one batch, and each is disturbed in its own way: the weights are read once for all of them.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.random_errors import RandomErrors
from collab_llamacpp.native.model import GET_ROWS, MUL_MAT, MUL_MAT_ID, read_tensor, tensor_at, write_tensor
from collab_llamacpp.native.observe import Observer
from collab_plugin.engines.disturbance import Disturbance, ErrorShape
from collab_plugin.engines.ggml_structs import GgmlTensor
from collab_plugin.errors import CollabError

F32 = NDArray[np.float32]
_OP, _NAME = GgmlTensor.op.offset, GgmlTensor.name.offset
_PRODUCTS = (MUL_MAT, MUL_MAT_ID, GET_ROWS)
# What selection looks at (src/llama-graph.cpp build_moe_ffn, 0c1e57098): logits become probabilities by softmax or
# sigmoid, to which a router's bias is added.
_ROUTED = re.compile(rb"^ffn_moe_(?:logits|logits_biased|probs_biased)-(\d+)$")
_WEIGHTS = re.compile(rb"^ffn_moe_weights-\d+$")
NEVER = np.float32(-1e30)
"""A router logit that softmax and sigmoid turn into 0, and a biased probability that is never among the top."""


class Disturber(Observer):
    """`set` gives each sequence of the next batch its disturbance. ``hit``: tensors whose products were disturbed.

    ``logits_as_weights``: the router's softmax comes after its choice of experts.
    """

    def __init__(self, shapes: Mapping[str, ErrorShape], ctx: int, logits_as_weights: bool) -> None:
        super().__init__()
        self.shapes, self.sequences, self.ctx = shapes, 0, ctx
        self._unused_weight = NEVER if logits_as_weights else np.float32(0)
        self._random = RandomErrors()
        self.hit: set[str] = set()
        self._errors: dict[bytes, list[tuple[int, float]]] = {}
        self._dropped: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        self._used: list[tuple[int, int]] = []

    def set(self, disturbances: Sequence[Disturbance | None]) -> None:
        """What the sequences of the next batch get, in their order; None: nothing."""
        self._errors, self._dropped, self._used = {}, {}, []
        self.sequences = len(disturbances)
        for sequence, disturbance in enumerate(disturbances):
            if disturbance is None:
                continue
            for name, error in disturbance.errors.items():
                self._errors.setdefault(name.encode(), []).append((sequence, error))
            for layer, kept in disturbance.kept.items():
                self._dropped.setdefault(layer, []).append((sequence, kept))
            if disturbance.experts_used is not None:
                self._used.append((sequence, disturbance.experts_used))

    def wanted(self, address: int) -> bool:
        op = ctypes.c_int.from_address(address + _OP).value
        if op in _PRODUCTS and _weight(address) in self._errors:
            return True
        name = _name(address)
        return _layer(name) in self._dropped or bool(self._used and _WEIGHTS.match(name))

    def take(self, address: int) -> bool:
        node = _name(address)
        layer = _layer(node)
        if layer in self._dropped:
            self._mask(address, self._dropped[layer])
        elif self._used and _WEIGHTS.match(node):
            self._use_fewer(address)
        op = ctypes.c_int.from_address(address + _OP).value
        if op in _PRODUCTS and (name := _weight(address)) in self._errors:
            self._disturb(address, op, name.decode(), self._errors[name])
        return True

    def _mask(self, address: int, dropped: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        values = np.array(read_tensor(address))  # f32[..., tokens, experts]
        rows = values.reshape(-1, values.shape[-1])
        for sequence, kept in dropped:
            lost = np.setdiff1d(np.arange(rows.shape[1]), kept)
            rows[self._tokens(sequence)[:, None], lost] = NEVER
        write_tensor(address, values)

    def _use_fewer(self, address: int) -> None:
        """A token's experts stand by falling score: the last ones get no weight, before weights are renormalised."""
        values = np.array(read_tensor(address))  # f32[1, tokens, k, 1]
        for sequence, used in self._used:
            values[0, self._tokens(sequence), used:] = self._unused_weight
        write_tensor(address, values)

    def _disturb(self, address: int, op: int, name: str, errors: Sequence[tuple[int, float]]) -> None:
        t, shape = tensor_at(address), self.shapes[name]
        values = np.array(read_tensor(address))
        for sequence, error in errors:
            if op == MUL_MAT_ID:
                self._experts(values, t, name, sequence, error, shape)
            elif op == GET_ROWS:
                rows = values.reshape(-1, values.shape[-1])
                at = self._tokens(sequence)
                ids = read_tensor(t.src[1]).reshape(-1)[at]
                energy = np.broadcast_to(shape.energy[0], max(int(ids.max()) + 1, shape.energy.shape[1]))[ids]
                rows[at] += self._random.rows(name, ids, rows.shape[1], error * energy / shape.inputs[0])
            else:
                self._matrix(values, t, name, sequence, error, shape)
        write_tensor(address, values)
        self.hit.add(name)

    def _experts(self, values: F32, t: Any, name: str, sequence: int, error: float, shape: ErrorShape) -> None:
        """values f32[1, tokens, k, rows]; x f32[1, tokens, 1 or k, n]; ids i32[1, 1, tokens, k]."""
        at = self._tokens(sequence)
        ids = read_tensor(t.src[2])[0, 0][at]
        x = read_tensor(t.src[1])[0][at]
        for index in np.unique(ids):
            tokens, places = np.nonzero(ids == index)
            inputs = x[tokens, np.minimum(places, x.shape[1] - 1)]
            variance = _variance(shape, int(index), error, values.shape[-1])
            values[0, at[tokens], places] += self._random.product(name, int(index), inputs, variance)

    def _matrix(self, values: F32, t: Any, name: str, sequence: int, error: float, shape: ErrorShape) -> None:
        """values f32[1, slices, tokens, rows], or f32[sequences, slices, tokens of one, rows] inside attention."""
        x = read_tensor(t.src[1])
        total = self.sequences * self.ctx
        if values.shape[0] == 1 and values.shape[2] == total:
            first, at = 0, self._tokens(sequence)
        elif values.shape[0] == self.sequences and values.shape[2] == self.ctx:
            first, at = sequence, np.arange(self.ctx)
        else:
            raise CollabError(f"the product of {name} has the shape {values.shape}, which has no place for each token")
        for index in range(values.shape[1]):
            inputs = x[min(first, x.shape[0] - 1), min(index, x.shape[1] - 1)][at]
            variance = _variance(shape, index, error, values.shape[-1])
            values[first, index, at] += self._random.product(name, index, inputs, variance)

    def _tokens(self, sequence: int) -> NDArray[np.int64]:
        return np.arange(sequence * self.ctx, (sequence + 1) * self.ctx)


def _variance(shape: ErrorShape, index: int, error: float, rows: int) -> F32:
    """Mean square of the entries of each row of the error of a slice, f32[rows]."""
    own = min(index, len(shape.inputs) - 1)
    return np.broadcast_to(np.asarray(error * shape.energy[own] / shape.inputs[own], np.float32), rows)


def _name(address: int) -> bytes:
    return ctypes.string_at(address + _NAME)


def _layer(node: bytes) -> int | None:
    """The layer of a node that experts are chosen by."""
    found = _ROUTED.match(node)
    return int(found[1]) if found else None


def _weight(address: int) -> bytes:
    """Name of the first operand."""
    source = tensor_at(address).src[0]
    return bytes(tensor_at(source).name) if source else b""
