"""Where the values of one GGUF tensor come from in a Hugging Face checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32, Bytes
from collab_plugin.checkpoint.decode import decode
from collab_plugin.checkpoint.storage.microscaled import Nvfp4
from collab_plugin.checkpoint.storage.stored_matrix import Matrix, encode
from collab_plugin.errors import CollabError

_Read = Callable[[Matrix, slice | None], NDArray[Any]]


class TensorSource(ABC):
    """``shape`` and ``type`` as the GGUF tensor has them; ``values`` as in `Checkpoint.read`, ``raw`` as in `read_raw`.

    ``matrices``: what is stored: one matrix, or one for each expert. ``type`` is their native type where stored codes
    are moved as they are.
    """

    shape: tuple[int, ...]
    type: Type
    matrices: list[Matrix]

    @abstractmethod
    def values(self, expert: int | None, rows: slice | None) -> F32: ...

    def raw(self, expert: int | None, rows: slice | None) -> Bytes:
        return encode(self.values(expert, rows), self.type)

    @property
    def by_rows(self) -> bool:
        """See `Checkpoint.by_rows`."""
        return False


class _Moved(TensorSource):
    """A source that moves what is stored, so that a native type of the matrices is its own type."""

    @abstractmethod
    def _stored(self, expert: int | None, rows: slice | None, read: _Read) -> NDArray[Any]:
        """Taken with ``read``, which reads values or bytes of a matrix."""

    @property
    def _native(self) -> bool:
        return self.type == self.matrices[0].native

    def values(self, expert: int | None, rows: slice | None) -> F32:
        if self._native:
            return decode(self.raw(expert, rows), self.type)
        return np.asarray(self._stored(expert, rows, lambda matrix, chosen: matrix.values(chosen)))

    def raw(self, expert: int | None, rows: slice | None) -> Bytes:
        if self._native:
            return np.asarray(self._stored(expert, rows, lambda matrix, chosen: matrix.native_rows(chosen)))
        return super().raw(expert, rows)


class Single(_Moved):
    """A tensor as it is; ``float32`` widens it (norms, routers, biases: what llama.cpp expects)."""

    def __init__(self, matrix: Matrix, float32: bool) -> None:
        self.matrix, self.matrices, self.shape = matrix, [matrix], matrix.shape
        self.type = Type.F32 if float32 else matrix.native or matrix.type

    @property
    def by_rows(self) -> bool:
        return len(self.shape) == 2

    def _stored(self, expert: int | None, rows: slice | None, read: _Read) -> NDArray[Any]:
        if expert is None:
            return read(self.matrix, rows)
        row = read(self.matrix, slice(expert, expert + 1))[0]
        return np.asarray(row if rows is None else row[rows])


class Stack(_Moved):
    """One matrix an expert, stacked; reading one touches no other."""

    def __init__(self, matrices: list[Matrix]) -> None:
        shapes = {m.shape for m in matrices}
        types = {m.native or m.type for m in matrices}
        if len(shapes) != 1 or len(types) != 1:
            raise CollabError(f"{matrices[0].name} and the other experts differ in shape or dtype")
        self.matrices = matrices
        self.shape, self.type = (len(matrices), *shapes.pop()), types.pop()

    @property
    def by_rows(self) -> bool:
        return True

    def _stored(self, expert: int | None, rows: slice | None, read: _Read) -> NDArray[Any]:
        if expert is None:
            return np.stack([read(matrix, None) for matrix in self.matrices])
        return read(self.matrices[expert], rows)


class ExpertFactors(TensorSource):
    """One float32 for each expert, as F32: what a `Stack` at NVFP4 leaves out of values (`Nvfp4.factor`)."""

    def __init__(self, experts: list[Nvfp4]) -> None:
        self._experts, self.matrices, self.shape, self.type = experts, [], (len(experts),), Type.F32

    def values(self, expert: int | None, rows: slice | None) -> F32:
        if expert is not None:
            return np.array(self._experts[expert].factor, np.float32)
        return np.array([m.factor for m in self._experts[rows if rows is not None else slice(None)]], np.float32)


class KeyValueHeads(TensorSource):
    """MLA's kv_b_proj cut by head: the key part transposed ("k"), or the value part ("v").

    kv_b_proj is [heads × (nope + value), rank]; attn_k_b is [heads, rank, nope] and attn_v_b
    [heads, value, rank] (conversion/deepseek.py:431-446: what the absorbed form multiplies with).
    """

    def __init__(self, matrix: Matrix, part: str, heads: int, nope: int, value: int) -> None:
        total, rank = matrix.shape
        if total != heads * (nope + value):
            raise CollabError(f"{matrix.name} has {total} rows, {heads} heads of {nope} + {value} are needed")
        self.matrices = [matrix]
        self.matrix, self.part, self.nope, self.height, self.type = (
            matrix,
            part,
            nope,
            nope + value,
            matrix.type,
        )
        self.shape = (heads, rank, nope) if part == "k" else (heads, value, rank)

    def values(self, expert: int | None, rows: slice | None) -> F32:
        if expert is None:
            return np.stack([self.values(i, None) for i in range(self.shape[0])])
        start = expert * self.height
        if self.part == "k":
            head = np.ascontiguousarray(self.matrix.values(slice(start, start + self.nope)).T)
        else:
            head = self.matrix.values(slice(start + self.nope, start + self.height))
        return head if rows is None else head[rows]


class FusedExperts(_Moved):
    """Part ``part`` of ``parts`` projections of all experts, stored in one tensor; reading one touches no other.

    The tensor is [experts, parts × out, in], or [experts, in, parts × out] when ``transposed``, or of biases
    [experts, parts × out]. Parts lie behind each other, or in turn where ``interleaved``. ``float32`` widens it.
    """

    def __init__(
        self, matrix: Matrix, part: int, parts: int, interleaved: bool, transposed: bool, float32: bool = False
    ) -> None:
        self.matrix, self.matrices = matrix, [matrix]
        kept = matrix.type if transposed else matrix.native or matrix.type
        self.type = Type.F32 if float32 else kept
        self.part, self.parts, self.interleaved, self.transposed = part, parts, interleaved, transposed
        experts, *inner = matrix.shape
        out, *width = reversed(inner) if transposed else inner
        if out % parts:
            raise CollabError(f"{matrix.name} has {out} rows an expert, which {parts} parts do not divide")
        self.shape = (experts, out // parts, *width)

    def _stored(self, expert: int | None, rows: slice | None, read: _Read) -> NDArray[Any]:
        if expert is None:
            biases = len(self.shape) == 2  # whose rows are the experts
            inner = None if biases else rows
            return np.stack([self._stored(i, inner, read) for i in self._experts(rows if biases else None)])
        values = read(self.matrix, slice(expert, expert + 1))[0]
        if self.transposed:
            values = values.T
        height = self.shape[1]
        start = self.part if self.interleaved else self.part * height
        own = values[start :: self.parts] if self.interleaved else values[start : start + height]
        return np.ascontiguousarray(own if rows is None else own[rows])

    def _experts(self, rows: slice | None) -> range:
        return range(self.shape[0])[rows if rows is not None else slice(None)]
