"""Small numbers out of bytes. All take uint8[n, bytes]; what they return has n rows too."""

from __future__ import annotations

import torch
from torch import Tensor


def planes(raw: Tensor, run: int, bits: int) -> Tensor:
    """i32[n, bytes × 8 / bits]: of each ``run`` bytes first all lowest fields, then all next ones.

    So ggml packs values that lie ``run`` apart; a run of 1 gives a byte's fields one after the other.
    """
    shifts = torch.arange(0, 8, bits, device=raw.device, dtype=torch.int32)
    runs = raw.to(torch.int32).reshape(raw.shape[0], -1, 1, run)
    return ((runs >> shifts[:, None]) & ((1 << bits) - 1)).reshape(raw.shape[0], -1)


def words(raw: Tensor, size: int) -> Tensor:
    """i64[n, bytes / size]: little-endian numbers of ``size`` bytes."""
    parts = raw.to(torch.int64).reshape(raw.shape[0], -1, size)
    return (parts << (8 * torch.arange(size, device=raw.device))).sum(-1)


def split(numbers: Tensor, bits: int, count: int) -> Tensor:
    """[n, m, count]: ``count`` fields of ``bits`` from the lowest bit of each of the [n, m] numbers."""
    shifts = torch.arange(count, device=numbers.device, dtype=numbers.dtype) * bits
    return (numbers[..., None] >> shifts) & ((1 << bits) - 1)


def half(raw: Tensor) -> Tensor:
    """f32[n, bytes / 2] of float16."""
    return raw.contiguous().view(torch.float16).to(torch.float32)


def signed(raw: Tensor) -> Tensor:
    """f32[n, bytes] of int8."""
    return raw.contiguous().view(torch.int8).to(torch.float32)
