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
E4M3_SMALL = np.float32(2.0**-120)
_SIGN_AND_CODE = np.int32(-0x78100000)
"""0x87f00000: the bits of a float32 where `e4m3_small` puts a code."""
E2M1: F32 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""float4 E2M1 by code."""
NO_E8M0 = 255
"""The code of E8M0 that is no number."""


def e4m3_small(codes: NDArray[np.uint8], into: F32) -> None:
    """Values × `E4M3_SMALL` of ``codes`` [...], none of them NaN, into ``into`` [...], contiguous.

    Exponent and mantissa lie in a float32 as in a code, 20 bits higher, and 120 more is taken from the exponent. Codes
    below 8 become numbers below 2^-126, which count where `keeps_small` says so.
    """
    bits = into.view(np.int32)
    np.left_shift(codes.view(np.int8), 20, out=bits, dtype=np.int32)  # the sign fills what is above
    bits &= _SIGN_AND_CODE


def keeps_small() -> bool:
    """Whether this thread computes with numbers below 2^-126: libraries made for speed may have told it not to."""
    return bool((np.full(16, 2.0**-129, np.float32) / E4M3_SMALL > 0).all())


def has_nan(codes: NDArray[np.uint8]) -> bool:
    """Whether E4M3 ``codes`` [...] hold one of the two that are NaN."""
    return bool((codes & 127).max(initial=0) == 127)


def halfway(scales: F32) -> bool:
    """Whether a value of E4M3 times one of ``scales`` [...] may lie halfway between two bfloat16.

    Powers of two do not matter, so the eight mantissas tell.
    """
    products = np.multiply.outer(scales, np.arange(8, 16, dtype=np.float32))
    return bool(((products.view(np.uint32) & 0xFFFF) == 0x8000).any())


def round_in_place_to_bf16(values: F32, scratch: NDArray[np.uint32] | None) -> None:
    """Finite ``values`` [...], contiguous, to the nearest bfloat16 (nearest even) as float32; ``scratch``: as large, or
    None where no value lies halfway between two."""
    bits = values.view(np.uint32)
    if scratch is None:
        bits += 0x8000
    else:
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
