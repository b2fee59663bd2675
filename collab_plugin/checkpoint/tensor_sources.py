"""Where the values of one GGUF tensor come from in a Hugging Face checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32
from collab_plugin.checkpoint.decode import bf16_to_f32
from collab_plugin.errors import CollabError
from collab_plugin.formats.safetensors_header import Stored

SCALE_BLOCK = (128, 128)  # rows and columns of a scale where config.json's weight_block_size is left out
_PLAIN = {"F32": Type.F32, "F16": Type.F16, "BF16": Type.BF16, "F8_E4M3": Type.BF16, "F64": Type.F32}


def _e4m3_table() -> F32:
    """float8 E4M3 (no infinities; 0x7f and 0xff are NaN) by code."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -value, value).astype(np.float32)


E4M3 = _e4m3_table()


def round_to_bf16(values: F32) -> NDArray[np.uint16]:
    """float32[...] to bfloat16 bits, nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@dataclass(frozen=True)
class Matrix:
    """One stored tensor, with its FP8 scales when it has them: one for each block of ``block`` rows and columns."""

    stored: Stored
    scale: Stored | None = None
    block: tuple[int, int] = SCALE_BLOCK

    def __post_init__(self) -> None:
        s = self.stored
        if s.dtype not in _PLAIN:
            raise CollabError(f"{s.name} is stored as {s.dtype}, which is not supported")
        if (s.dtype == "F8_E4M3") != (self.scale is not None):
            raise CollabError(f"{s.name}: FP8 weights need weight_scale_inv, and only they have it")
        if self.scale is not None:
            want = tuple(-(-n // size) for n, size in zip(s.shape, self.block, strict=False))
            if len(s.shape) != 2 or self.scale.shape != want or self.scale.dtype not in ("F32", "BF16"):
                raise CollabError(
                    f"{self.scale.name} has shape {self.scale.shape}, {want} is needed, F32 or BF16 and not "
                    f"{self.scale.dtype}: a scale for each block of {self.block[0]} by {self.block[1]}"
                )

    @property
    def type(self) -> Type:
        return _PLAIN[self.stored.dtype]

    def values(self, rows: slice | None = None) -> F32:
        """Rows as float32; FP8 is scaled and then rounded to BF16, as a copy at that type would be."""
        s = self.stored
        item = len(s.data) // max(int(np.prod(s.shape, dtype=np.int64)), 1)
        view = s.data.reshape(*s.shape[:-1], s.shape[-1] * item)
        if rows is not None:
            view = view[rows]
        raw = np.ascontiguousarray(view)
        if s.dtype == "F8_E4M3":
            return bf16_to_f32(round_to_bf16(E4M3[raw] * self._scales(rows, raw.shape[1])))
        if s.dtype == "BF16":
            return bf16_to_f32(raw.view("<u2"))
        return raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[s.dtype]).astype(np.float32, copy=False)

    def _scales(self, rows: slice | None, columns: int) -> F32:
        assert self.scale is not None
        raw = np.ascontiguousarray(self.scale.data)
        grid = raw.view("<f4") if self.scale.dtype == "F32" else bf16_to_f32(raw.view("<u2"))
        index = np.arange(self.stored.shape[0])[rows if rows is not None else slice(None)] // self.block[0]
        wide = grid.reshape(self.scale.shape)[index].repeat(self.block[1], axis=1)
        return np.asarray(wide[:, :columns], np.float32)


class TensorSource(ABC):
    """``shape`` and ``type`` as the GGUF tensor has them; ``values`` as in `Checkpoint.read`.

    ``matrices``: what is stored: one tensor, or one for each expert.
    """

    shape: tuple[int, ...]
    type: Type
    matrices: list[Matrix]

    @abstractmethod
    def values(self, expert: int | None, rows: slice | None) -> F32: ...


class Single(TensorSource):
    """A tensor as it is; ``float32`` widens it (norms, routers, biases: what llama.cpp expects)."""

    def __init__(self, matrix: Matrix, float32: bool) -> None:
        self.matrix, self.matrices, self.shape = matrix, [matrix], matrix.stored.shape
        self.type = Type.F32 if float32 else matrix.type

    def values(self, expert: int | None, rows: slice | None) -> F32:
        if expert is None:
            return self.matrix.values(rows)
        row: F32 = self.matrix.values(slice(expert, expert + 1))[0]
        return row if rows is None else row[rows]


class Stack(TensorSource):
    """One matrix an expert, stacked; reading one touches no other."""

    def __init__(self, matrices: list[Matrix]) -> None:
        shapes = {m.stored.shape for m in matrices}
        types = {m.type for m in matrices}
        if len(shapes) != 1 or len(types) != 1:
            raise CollabError(f"{matrices[0].stored.name} and the other experts differ in shape or dtype")
        self.matrices = matrices
        self.shape, self.type = (len(matrices), *shapes.pop()), types.pop()

    def values(self, expert: int | None, rows: slice | None) -> F32:
        if expert is None:
            return np.stack([m.values() for m in self.matrices])
        return self.matrices[expert].values(rows)


class KeyValueHeads(TensorSource):
    """MLA's kv_b_proj cut by head: the key part transposed ("k"), or the value part ("v").

    kv_b_proj is [heads × (nope + value), rank]; attn_k_b is [heads, rank, nope] and attn_v_b
    [heads, value, rank] (conversion/deepseek.py:431-446: what the absorbed form multiplies with).
    """

    def __init__(self, matrix: Matrix, part: str, heads: int, nope: int, value: int) -> None:
        total, rank = matrix.stored.shape
        if total != heads * (nope + value):
            raise CollabError(f"{matrix.stored.name} has {total} rows, {heads} heads of {nope} + {value} are needed")
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


class Vector(Single):
    """A matrix of one row as a vector, widened to float32."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix, True)
        self.shape = matrix.stored.shape[1:]

    def values(self, expert: int | None, rows: slice | None) -> F32:
        row: F32 = self.matrix.values()[0]
        return row


class RotaryPairs(TensorSource):
    """Rows [heads × length, columns] reordered within each head from halves to neighbouring pairs.

    Row p of the first half and row p of the second become rows 2p and 2p + 1, so that an engine that rotates
    neighbours computes what one that rotates halves would (conversion/llama.py, permute).
    """

    def __init__(self, matrix: Matrix, heads: int) -> None:
        rows = matrix.stored.shape[0]
        if heads < 1 or rows % (2 * heads):
            raise CollabError(f"{matrix.stored.name} has {rows} rows, which {heads} heads do not divide into pairs")
        self.matrix, self.matrices, self.shape, self.type = matrix, [matrix], matrix.stored.shape, matrix.type
        self.length = rows // heads

    def values(self, expert: int | None, rows: slice | None) -> F32:
        wanted = np.arange(self.shape[0])[rows if rows is not None else slice(None)]
        first = int(wanted.min(initial=0)) // self.length * self.length
        last = (int(wanted.max(initial=0)) // self.length + 1) * self.length
        within = wanted % self.length
        source = wanted - within + within % 2 * (self.length // 2) + within // 2
        return np.asarray(self.matrix.values(slice(first, last))[source - first])


class FusedExperts(TensorSource):
    """Part ``part`` of ``parts`` projections of all experts, stored in one tensor; reading one touches no other.

    The tensor is [experts, parts × out, in], or [experts, in, parts × out] when ``transposed``. Parts lie behind each
    other, or in turn where ``interleaved``.
    """

    def __init__(self, matrix: Matrix, part: int, parts: int, interleaved: bool, transposed: bool) -> None:
        self.matrix, self.matrices, self.type = matrix, [matrix], matrix.type
        self.part, self.parts, self.interleaved, self.transposed = part, parts, interleaved, transposed
        experts, out, width = matrix.stored.shape if not transposed else self._turned(matrix.stored.shape)
        if out % parts:
            raise CollabError(f"{matrix.stored.name} has {out} rows an expert, which {parts} parts do not divide")
        self.shape = (experts, out // parts, width)

    @staticmethod
    def _turned(shape: tuple[int, ...]) -> tuple[int, int, int]:
        experts, width, out = shape
        return experts, out, width

    def values(self, expert: int | None, rows: slice | None) -> F32:
        if expert is None:
            return np.stack([self.values(i, rows) for i in range(self.shape[0])])
        values = self.matrix.values(slice(expert, expert + 1))[0]
        if self.transposed:
            values = values.T
        height = self.shape[1]
        start = self.part if self.interleaved else self.part * height
        own = values[start :: self.parts] if self.interleaved else values[start : start + height]
        return np.ascontiguousarray(own if rows is None else own[rows])
