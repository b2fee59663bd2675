"""Whole numbers of 4 or 8 bits with a scale a group, packed as compressed-tensors' "pack-quantized".

Symmetric: value = scale × q with q in [-2^(bits-1), 2^(bits-1) - 1]. A row's q + 2^(bits-1) are packed
into little-endian 32-bit words, the first in the lowest bits (compressed-tensors 0.17,
compressors/pack_quantized/helpers.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32
from collab_plugin.checkpoint.decode import bf16_to_f32
from collab_plugin.checkpoint.storage.small_floats import round_to_bf16

# What a scale may be shrunk by, so that a group's largest value is cut and the others fall closer.
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)


def packed_columns(columns: int, bits: int) -> int:
    """32-bit words that a row of ``columns`` values takes."""
    return -(-columns * bits // 32)


def quantize(values: F32, bits: int, group: int, scale_dtype: str) -> tuple[NDArray[np.int32], NDArray[np.generic]]:
    """Return (packed i32[rows, words], scales [rows, columns / group] as stored at ``scale_dtype``).

    Of five scales a group, the one with the least squared error. ValueError when the groups do not fit.
    """
    rows, columns = values.shape
    if columns % group:
        raise ValueError(f"rows of {columns} values are no multiple of groups of {group}")
    groups = values.reshape(rows, columns // group, group)
    half = 1 << (bits - 1)
    largest = np.abs(groups).max(axis=2)
    best_error = np.full(largest.shape, np.inf, np.float32)
    best_q = np.zeros(groups.shape, np.int8)
    best_scale = np.ones(largest.shape, np.float32)
    for shrink in _SHRINK if bits < 8 else _SHRINK[:1]:
        # Rounded as stored before it is used; zero groups and what underflows keep a scale of 1.
        scale = _stored_values(largest * np.float32(shrink / (half - 1)), scale_dtype)
        scale = np.where(scale > 0, scale, np.float32(1))
        q = np.clip(np.rint(groups / scale[..., None]), -half, half - 1)
        error = np.square(groups - q * scale[..., None]).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_q = np.where(better[..., None], q, best_q).astype(np.int8)
    return _pack(best_q.reshape(rows, columns), bits), _store(best_scale, scale_dtype)


def _pack(q: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    rows, columns = q.shape
    each = 32 // bits
    codes = (q.astype(np.int16) + (1 << (bits - 1))).astype(np.uint32)
    codes = np.pad(codes, ((0, 0), (0, -columns % each))).reshape(rows, -1, each)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(codes << shifts, axis=2).astype("<u4")
    return words.view(np.int32)


def _store(values: F32, dtype: str) -> NDArray[np.generic]:
    if dtype == "BF16":
        return round_to_bf16(values)
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype])


def _stored_values(values: F32, dtype: str) -> F32:
    if dtype == "BF16":
        return bf16_to_f32(round_to_bf16(values))
    return np.asarray(_store(values, dtype), np.float32)
