"""Floats of 4, 8 and 16 bits: tables of the values of their codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32

STRIP = 2**16
"""Values that are computed on at a time, so that all steps find them in the processor's cache."""


def _e4m3_table() -> F32:
    """float8 E4M3 (no infinities; 0x7f and 0xff are NaN) by code."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -value, value).astype(np.float32)


E4M3 = _e4m3_table()
_E4M3_PAIRS = np.stack([E4M3[np.arange(2**16) & 255], E4M3[np.arange(2**16) >> 8]], axis=1).view("<u8").reshape(-1)
"""Two values, as 64 bits, by two codes: a look-up for two costs what one costs."""
E2M1: F32 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""float4 E2M1 by code."""
NO_E8M0 = 255
"""The code of E8M0 that is no number."""


def e4m3_to_f32(codes: NDArray[np.uint8], into: F32) -> None:
    """Values of contiguous ``codes`` [...] into ``into`` [...], contiguous too."""
    pairs = codes.size // 2
    flat, out = codes.reshape(-1), into.reshape(-1)
    # Every index is in the table: "clip" is the mode that does not look.
    np.take(_E4M3_PAIRS, flat[: 2 * pairs].view("<u2"), out=out[: 2 * pairs].view("<u8"), mode="clip")
    out[2 * pairs :] = E4M3[flat[2 * pairs :]]


def round_in_place_to_bf16(values: F32, scratch: NDArray[np.uint32]) -> None:
    """Finite ``values`` [...], contiguous, to the nearest bfloat16 (nearest even) as float32; ``scratch``: as large."""
    bits = values.view(np.uint32)
    np.right_shift(bits, 16, out=scratch)
    scratch &= 1
    scratch += 0x7FFF
    bits += scratch
    bits &= 0xFFFF0000


def e8m0_to_f32(codes: NDArray[np.uint8]) -> F32:
    """Powers of two, 2^(code - 127); NaN for 255."""
    powers = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    return np.where(codes == NO_E8M0, np.float32(np.nan), powers).astype(np.float32)


def round_to_bf16(values: F32) -> NDArray[np.uint16]:
    """float32[...] to bfloat16 bits, nearest even; NaN stays NaN. In strips that stay in the processor's cache."""
    values = np.ascontiguousarray(values)
    words = np.empty(values.shape, np.uint16)
    flat, bits, out = values.reshape(-1), values.reshape(-1).view(np.uint32), words.reshape(-1)
    for start in range(0, len(flat), STRIP):
        strip = slice(start, start + STRIP)
        rounded = bits[strip] >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits[strip]
        np.right_shift(rounded, 16, out=out[strip], casting="unsafe")
        nan = np.isnan(flat[strip])
        if nan.any():
            out[strip][nan] = 0x7FC0
    return words
