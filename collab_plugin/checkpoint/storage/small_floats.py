"""Floats of 4, 8 and 16 bits: tables of the values of their codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32


def _e4m3_table() -> F32:
    """float8 E4M3 (no infinities; 0x7f and 0xff are NaN) by code."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -value, value).astype(np.float32)


E4M3 = _e4m3_table()
E2M1: F32 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""float4 E2M1 by code."""
NO_E8M0 = 255
"""The code of E8M0 that is no number."""


def e8m0_to_f32(codes: NDArray[np.uint8]) -> F32:
    """Powers of two, 2^(code - 127); NaN for 255."""
    powers = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    return np.where(codes == NO_E8M0, np.float32(np.nan), powers).astype(np.float32)


def round_to_bf16(values: F32) -> NDArray[np.uint16]:
    """float32[...] to bfloat16 bits, nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
