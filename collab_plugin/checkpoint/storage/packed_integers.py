"""Whole numbers of 4 or 8 bits with a scale for a group of a row: compressed-tensors' pack-quantized and
int-quantized."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32, Bytes
from collab_plugin.checkpoint.storage.nibbles import BLOCK, block_nibbles, blocks_behind_scales
from collab_plugin.checkpoint.storage.stored_matrix import Matrix, Rows, as_stored_type, floats, need_shape, stored_rows
from collab_plugin.errors import CollabError
from collab_plugin.formats.safetensors_header import Stored

_SCALES = ("BF16", "F16", "F32")
_LARGEST_HALF = 65504.0


class PackedIntegers(Matrix):
    """value = scale × (q - zero point); the zero point is 0 where none is stored.

    A row's codes, q + 2^(bits - 1), lie in 32-bit words, the first in the lowest bits; or, of 8 bits, each in a byte
    as it is. Zero points are packed in the same way along the rows. Values are rounded to BF16 (to F16 where scales
    are F16), as the library does.

    ``native``: Q4_0 or Q8_0 where there are no zero points and 32 values always share a scale. Scales are F16 there:
    BF16 ones are exact from 2^-14 to 2^15, and below that no value is off by more than 2^-21.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        codes: Stored,
        scales: Stored,
        zeros: Stored | None = None,
        groups: Stored | None = None,
        beside: tuple[Stored, ...] = (),
    ) -> None:
        if len(shape) != 2 or len(codes.shape) != 2 or codes.dtype not in ("I32", "I8") or codes.shape[0] != shape[0]:
            raise CollabError(f"{codes.name} is {codes.dtype} {codes.shape}: whole numbers of {shape} do not fit it")
        extra = tuple(part for part in (zeros, groups) if part is not None)
        self.name, self.shape, self.parts = name, shape, (codes, scales, *beside, *extra)
        self.bits = _bits(codes, shape)
        rows, columns = shape
        self._group = columns // max(self._scales_a_row(scales), 1)
        self._zeros, self._groups = zeros, groups
        if groups is not None:
            need_shape(groups, [(columns,)], ("I32",), "the group of each column")
        elif self._group * self._scales_a_row(scales) != columns:
            raise CollabError(
                f"{scales.name} has {scales.shape[1]} scales for {columns} values, which they do not divide"
            )
        if zeros is not None:
            wanted = (-(-rows * self.bits // 32), scales.shape[1]) if codes.dtype == "I32" else scales.shape
            need_shape(zeros, [wanted], (codes.dtype,), "a zero point for each scale")
        self.type = Type.F16 if scales.dtype == "F16" else Type.BF16
        if zeros is None and groups is None and columns % BLOCK == 0 and self._group % BLOCK == 0:
            self.native = Type.Q4_0 if self.bits == 4 else Type.Q8_0

    def _scales_a_row(self, scales: Stored) -> int:
        if len(scales.shape) != 2 or scales.shape[0] != self.shape[0] or scales.dtype not in _SCALES:
            raise CollabError(
                f"{scales.name} is {scales.dtype} {scales.shape}: scales of each of {self.shape[0]} rows are needed"
            )
        return scales.shape[1]

    def _group_of(self) -> NDArray[np.intp]:
        """The scale of each column."""
        if self._groups is None:
            return np.arange(self.shape[1], dtype=np.intp) // self._group
        found = stored_rows(self._groups).view("<i4").astype(np.intp)
        if found.min() < 0 or found.max() >= self.parts[1].shape[1]:
            raise CollabError(f"{self._groups.name} names a group that {self.parts[1].name} has no scale for")
        return found

    def values(self, rows: Rows | None = None) -> F32:
        numbers, groups = self._numbers(rows).astype(np.float32), self._group_of()
        if self._zeros is not None:
            numbers -= self._zero_points(rows)[:, groups]
        numbers *= floats(self.parts[1], rows)[:, groups]
        return as_stored_type(numbers, self.type)

    def native_rows(self, rows: Rows | None = None) -> Bytes:
        if self.native is None:
            return super().native_rows(rows)
        scales = floats(self.parts[1], rows)[:, self._group_of()[::BLOCK]]
        if not np.isfinite(scales).all() or np.abs(scales).max(initial=0) > _LARGEST_HALF:
            raise CollabError(f"{self.parts[1].name} holds scales that are no numbers or beyond F16")
        halves = scales.astype("<f2")[..., None].view(np.uint8)
        numbers = self._numbers(rows)
        if self.bits == 4:
            return blocks_behind_scales(halves, block_nibbles((numbers + 8).astype(np.uint8)))
        return blocks_behind_scales(halves, numbers.reshape(*numbers.shape[:-1], -1, BLOCK).view(np.uint8))

    def _numbers(self, rows: Rows | None) -> NDArray[np.int8]:
        codes = stored_rows(self.parts[0], rows)
        if self.parts[0].dtype == "I8":
            return codes.view(np.int8)
        return _unpacked(codes.view("<u4"), self.bits, self.shape[1])

    def _zero_points(self, rows: Rows | None) -> F32:
        assert self._zeros is not None
        wanted = rows if rows is not None else slice(None)
        raw = stored_rows(self._zeros)
        if self._zeros.dtype == "I8":
            return raw.view(np.int8)[wanted].astype(np.float32)
        words = np.ascontiguousarray(raw.view("<u4").T)
        return _unpacked(words, self.bits, self.shape[0]).T[wanted].astype(np.float32)


def _bits(codes: Stored, shape: tuple[int, ...]) -> int:
    if codes.dtype == "I8":
        if codes.shape != shape:
            raise CollabError(f"{codes.name} has the shape {codes.shape}, {shape} is needed")
        return 8
    for bits in (4, 8):
        if codes.shape[1] == -(-shape[1] * bits // 32):
            return bits
    raise CollabError(f"{codes.name} has {codes.shape[1]} words for {shape[1]} values; 4 and 8 bits are read")


def _unpacked(words: NDArray[np.uint32], bits: int, columns: int) -> NDArray[np.int8]:
    """uint32[rows, words] to numbers int8[rows, columns] between -2^(bits - 1) and 2^(bits - 1) - 1."""
    codes = np.ascontiguousarray(words).view(np.uint8)
    if bits == 4:
        both = np.empty((*codes.shape[:-1], codes.shape[-1] * 2), np.uint8)
        both[..., 0::2], both[..., 1::2] = codes & 15, codes >> 4
        codes = both
    return np.asarray((codes[..., :columns].astype(np.int16) - (1 << (bits - 1))).astype(np.int8))
