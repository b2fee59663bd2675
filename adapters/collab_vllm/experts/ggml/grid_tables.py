"""Codebooks of the IQ types, from gguf-py, on the device that asks."""

from __future__ import annotations

import functools

import torch
from gguf import quants
from torch import Tensor


@functools.cache
def grid(type_name: str, device: torch.device) -> Tensor:
    """f32[entries, 4 or 8]: the points that ``type_name`` picks from."""
    book = getattr(quants, type_name)
    book.init_grid()
    return torch.from_numpy(book.grid.reshape(book.grid_shape).copy()).to(device)


@functools.cache
def signs(device: torch.device) -> Tensor:
    """f32[128, 8]: seven signs by their bits; the eighth makes the number of minuses even."""
    bits = (torch.arange(128)[:, None] >> torch.arange(7)) & 1
    bits = torch.cat([bits, bits.sum(1, keepdim=True) % 2], dim=1)
    return (1.0 - 2.0 * bits).to(device)


@functools.cache
def four_bit_values(device: torch.device) -> Tensor:
    """f32[16]: the uneven steps of IQ4_NL and IQ4_XS."""
    return torch.tensor(quants.IQ4_NL.kvalues, dtype=torch.float32, device=device)
