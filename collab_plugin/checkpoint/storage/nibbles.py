"""Codes of four bits: two in a byte as checkpoints store them, and 32 in a block as a GGUF does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Bytes

BLOCK = 32


def split_nibbles(packed: Bytes) -> NDArray[np.uint8]:
    """uint8[..., n] to codes uint8[..., 2n]: the lower half of a byte is the first."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes


def block_nibbles(codes: NDArray[np.uint8], block: int = BLOCK) -> Bytes:
    """Codes uint8[..., n] to uint8[..., n / block, block / 2]: byte j of a block has value j below, and above it the
    value that is half a block further."""
    blocks = codes.reshape(*codes.shape[:-1], codes.shape[-1] // block, block)
    return np.asarray(blocks[..., : block // 2] | (blocks[..., block // 2 :] << 4))


def blocks_behind_scales(scales: Bytes, codes: Bytes) -> Bytes:
    """Scales uint8[..., blocks, s] and codes uint8[..., blocks, c] to uint8[..., blocks × (s + c)]."""
    both = np.concatenate([scales, codes], axis=-1)
    return both.reshape(*both.shape[:-2], -1)
