"""Random errors of chosen weights, and experts that may not be chosen, while a graph runs (cb_eval).

Many sequences run in one batch, and each is disturbed in its own way: the weights are read once for all of them.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.random_errors import RandomErrors
from collab_llamacpp.native.model import GET_ROWS, MUL_MAT, MUL_MAT_ID, read_tensor, tensor_at, write_tensor
from collab_llamacpp.native.observe import Observer
from collab_plugin.engines.disturbance import Disturbance, ErrorShape
from collab_plugin.engines.ggml_structs import GgmlTensor
from collab_plugin.errors import CollabError
from collab_plugin.quantize.rounded_inputs import lost_by_rounding

F32 = NDArray[np.float32]
_OP, _NAME = GgmlTensor.op.offset, GgmlTensor.name.offset
_PRODUCTS = (MUL_MAT, MUL_MAT_ID, GET_ROWS)
# What selection looks at (src/llama-graph.cpp build_moe_ffn, 0c1e57098): logits become probabilities by softmax or
# sigmoid, to which a router's bias is added.
_ROUTED = re.compile(rb"^ffn_moe_(?:logits|logits_biased|probs_biased)-(\d+)$")
_WEIGHTS = re.compile(rb"^ffn_moe_weights-\d+$")
NEVER = np.float32(-1e30)
"""A router logit that softmax and sigmoid turn into 0, and a biased probability that is never among the top."""


@dataclass(frozen=True)
class _Noise:
    """Added to the products of one tensor in one sequence: of an ``error`` of the tensor, or of inputs ``rounded`` in
    blocks of so many."""

    sequence: int
    error: float = 0.0
    rounded: int = 0

    def name(self, tensor: str) -> str:
        """What is random depends on it: the two kinds are independent."""
        return f"{tensor} inputs" if self.rounded else tensor

    def inputs(self, x: F32) -> F32:
        """What a random matrix is multiplied with, f32[tokens, n]."""
        return lost_by_rounding(x, self.rounded) if self.rounded else x

    def variance(self, shape: ErrorShape, index: int, rows: int, n: int) -> F32:
        """Mean square of the entries of each of its rows, f32[rows]."""
        own = min(index, len(shape.inputs) - 1)
        found = shape.plain[own] / n if self.rounded else self.error * shape.energy[own] / shape.inputs[own]
        return np.broadcast_to(np.asarray(found, np.float32), rows)


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
        self._noise: dict[bytes, list[_Noise]] = {}
        self._dropped: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        self._used: list[tuple[int, int]] = []

    def set(self, disturbances: Sequence[Disturbance | None]) -> None:
        """What the sequences of the next batch get, in their order; None: nothing."""
        self._noise, self._dropped, self._used = {}, {}, []
        self.sequences = len(disturbances)
        for sequence, disturbance in enumerate(disturbances):
            if disturbance is None:
                continue
            for name, error in disturbance.errors.items():
                self._noise.setdefault(name.encode(), []).append(_Noise(sequence, error=error))
            for name, block in disturbance.rounded.items():
                self._noise.setdefault(name.encode(), []).append(_Noise(sequence, rounded=block))
            for layer, kept in disturbance.kept.items():
                self._dropped.setdefault(layer, []).append((sequence, kept))
            if disturbance.experts_used is not None:
                self._used.append((sequence, disturbance.experts_used))

    def wanted(self, address: int) -> bool:
        op = ctypes.c_int.from_address(address + _OP).value
        if op in _PRODUCTS and _weight(address) in self._noise:
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
        if op in _PRODUCTS and (name := _weight(address)) in self._noise:
            self._disturb(address, op, name.decode(), self._noise[name])
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

    def _disturb(self, address: int, op: int, name: str, noises: Sequence[_Noise]) -> None:
        t, shape = tensor_at(address), self.shapes[name]
        values = np.array(read_tensor(address))
        for noise in noises:
            if op == MUL_MAT_ID:
                self._experts(values, t, name, noise, shape)
            elif op == GET_ROWS:
                self._looked_up(values, t, name, noise, shape)
            else:
                self._matrix(values, t, name, noise, shape)
        write_tensor(address, values)
        self.hit.add(name)

    def _looked_up(self, values: F32, t: Any, name: str, noise: _Noise, shape: ErrorShape) -> None:
        """Rows of a table, which has no inputs to round: values f32[..., tokens, n]."""
        rows = values.reshape(-1, values.shape[-1])
        at = self._tokens(noise.sequence)
        ids = read_tensor(t.src[1]).reshape(-1)[at]
        energy = np.broadcast_to(shape.energy[0], max(int(ids.max()) + 1, shape.energy.shape[1]))[ids]
        rows[at] += self._random.rows(name, ids, rows.shape[1], noise.error * energy / shape.inputs[0])

    def _experts(self, values: F32, t: Any, name: str, noise: _Noise, shape: ErrorShape) -> None:
        """values f32[1, tokens, k, rows]; x f32[1, tokens, 1 or k, n]; ids i32[1, 1, tokens, k]."""
        at = self._tokens(noise.sequence)
        ids = read_tensor(t.src[2])[0, 0][at]
        x = read_tensor(t.src[1])[0][at]
        for index in np.unique(ids):
            tokens, places = np.nonzero(ids == index)
            inputs = x[tokens, np.minimum(places, x.shape[1] - 1)]
            values[0, at[tokens], places] += self._product(name, int(index), inputs, noise, shape, values.shape[-1])

    def _matrix(self, values: F32, t: Any, name: str, noise: _Noise, shape: ErrorShape) -> None:
        """values f32[1, slices, tokens, rows], or f32[sequences, slices, tokens of one, rows] inside attention."""
        x = read_tensor(t.src[1])
        total = self.sequences * self.ctx
        if values.shape[0] == 1 and values.shape[2] == total:
            first, at = 0, self._tokens(noise.sequence)
        elif values.shape[0] == self.sequences and values.shape[2] == self.ctx:
            first, at = noise.sequence, np.arange(self.ctx)
        else:
            raise CollabError(f"the product of {name} has the shape {values.shape}, which has no place for each token")
        for index in range(values.shape[1]):
            inputs = x[min(first, x.shape[0] - 1), min(index, x.shape[1] - 1)][at]
            values[first, index, at] += self._product(name, index, inputs, noise, shape, values.shape[-1])

    def _product(self, name: str, index: int, x: F32, noise: _Noise, shape: ErrorShape, rows: int) -> F32:
        """What the noise adds to the products of slice ``index`` with inputs ``x`` f32[tokens, n]."""
        inputs = noise.inputs(x)
        variance = noise.variance(shape, index, rows, inputs.shape[1])
        return self._random.product(noise.name(name), index, inputs, variance)

    def _tokens(self, sequence: int) -> NDArray[np.int64]:
        return np.arange(sequence * self.ctx, (sequence + 1) * self.ctx)


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
