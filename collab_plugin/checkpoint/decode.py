"""Stored bytes to float32, and the check that values are finite."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32, Bytes
from collab_plugin.errors import CollabError

_WHOLE = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def bf16_to_f32(words: NDArray[np.uint16]) -> F32:
    """uint16[...] holding bfloat16 bits to float32[...], exactly."""
    bits: NDArray[np.uint32] = np.left_shift(words, np.uint32(16), dtype=np.uint32)  # widened on the way, in the cache
    return bits.view(np.float32)


def decode(raw: Bytes, kind: GGMLQuantizationType) -> F32:
    """uint8[..., row bytes] at ``kind`` to float32[..., row width]; whole numbers above 2^24 are rounded."""
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(raw).view(np.float32)
    if kind == GGMLQuantizationType.F16:
        return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)
    if kind == GGMLQuantizationType.BF16:
        return bf16_to_f32(np.ascontiguousarray(raw).view(np.uint16))
    if kind == GGMLQuantizationType.F64:
        return np.ascontiguousarray(raw).view(np.float64).astype(np.float32)
    if kind.name in _WHOLE:
        return np.ascontiguousarray(raw).view(_WHOLE[kind.name]).astype(np.float32)
    try:
        values: F32 = quants.dequantize(np.ascontiguousarray(raw), kind)
    except NotImplementedError:
        raise CollabError(f"values of type {kind.name} cannot be read here") from None
    return values


def check_finite(values: F32, name: str, expert: int | None) -> F32:
    """Return ``values``; CollabError naming the tensor when one is NaN or infinite."""
    # The sum of squares is finite exactly when all values are, short of overflow: a cheap first look.
    with np.errstate(over="ignore", invalid="ignore"):
        quick = np.isfinite(np.dot(values.reshape(-1), values.reshape(-1)))
    if not quick and not np.isfinite(values).all():
        where = f"{name}, expert {expert}" if expert is not None else name
        bad = int(np.size(values) - np.isfinite(values).sum())
        raise CollabError(f"{where} holds {bad} values that are NaN or infinite; the checkpoint is damaged")
    return values
