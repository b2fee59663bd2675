"""What a processor loses of a product's inputs: beside a quantized tensor ggml rounds them to 8 bits.

quantize_row_q8_K_ref and quantize_row_q8_0_ref of ggml/src/ggml-quants.c (0c1e57098): one scale for 256 or for 32
values, their largest magnitude over 127. Which of the two a type takes: `vec_dot_type` in ggml-cpu/ggml-cpu.c.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.formats.ggml_types import TYPES

F32 = NDArray[np.float32]
BLOCKS = (256, 32)
_MOST = np.float32(127)
_TINY = np.float32(1e-30)


def block_of_inputs(kind: str) -> int:
    """Values that share a scale in the inputs of a tensor of the type ``kind``; 0 for types that are not rounded to."""
    if kind in ("F32", "F16", "BF16"):
        return 0
    return 256 if TYPES[kind].block == 256 else 32


def lost_by_rounding(x: F32, block: int) -> F32:
    """What rounding adds to each value of ``x`` f32[rows, n], the same shape; n a multiple of ``block``."""
    blocks = x.reshape(len(x), -1, block)
    scale = np.maximum(np.abs(blocks).max(-1, keepdims=True) / _MOST, _TINY)
    return np.asarray((np.rint(blocks / scale) * scale - blocks).reshape(x.shape), np.float32)


def share_lost(x: F32, block: int) -> F32:
    """Of each row of ``x``, the squared error of rounding over the row's square: f32[rows]; 0 for rows of zeros."""
    lost = np.square(lost_by_rounding(x, block)).sum(1)
    return np.asarray(lost / np.maximum(np.square(x).sum(1), _TINY), np.float32)
