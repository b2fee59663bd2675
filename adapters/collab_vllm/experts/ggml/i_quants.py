"""The IQ types below four bits: points of a codebook with signs and scales, 256 values a block (ggml-common.h).

Each function takes uint8[n, block bytes] and what it looks up (tables.py), and returns f32[n, 256].
"""

from __future__ import annotations

import torch
from torch import Tensor

from collab_vllm.experts.ggml.fields import half, planes, split, words

_DELTA = 0.125  # IQ1's shift of a whole point


def iq2_xxs(b: Tensor, grid: Tensor, signs: Tensor) -> Tensor:
    pairs = b[:, 2:].reshape(-1, 8, 8)
    second = words(pairs[..., 4:].reshape(len(b), -1), 4)
    scale = half(b[:, :2]) * (0.5 + (second >> 28).float()) * 0.25
    points = grid[pairs[..., :4].long().reshape(len(b), -1)]
    return _scaled(scale, points, signs[split(second, 7, 4)])


def iq2_xs(b: Tensor, grid: Tensor, signs: Tensor) -> Tensor:
    codes = words(b[:, 2:66], 2)
    scale = half(b[:, :2]) * (0.5 + planes(b[:, 66:], 1, 4)) * 0.25
    return _scaled(scale, grid[codes & 511], signs[codes >> 9])


def iq2_s(b: Tensor, grid: Tensor) -> Tensor:
    codes = b[:, 2:34].to(torch.int32) | planes(b[:, 66:74], 1, 2) << 8
    scale = half(b[:, :2]) * (0.5 + planes(b[:, 74:], 1, 4)) * 0.25
    return _scaled(scale, grid[codes], _sign_bits(b[:, 34:66]))


def iq3_xxs(b: Tensor, grid: Tensor, signs: Tensor) -> Tensor:
    second = words(b[:, 66:], 4)
    scale = half(b[:, :2]) * (0.5 + (second >> 28).float()) * 0.5
    return _scaled(scale, grid[b[:, 2:66].long()], signs[split(second, 7, 4)])


def iq3_s(b: Tensor, grid: Tensor) -> Tensor:
    codes = b[:, 2:66].to(torch.int32) | planes(b[:, 66:74], 1, 1) << 8
    scale = half(b[:, :2]) * (1 + 2 * planes(b[:, 106:], 1, 4))
    return _scaled(scale, grid[codes], _sign_bits(b[:, 74:106]))


def iq1_s(b: Tensor, grid: Tensor) -> Tensor:
    high = words(b[:, 34:], 2)
    codes = b[:, 2:34].long() | split(high, 3, 4).reshape(len(b), -1) << 8
    scale = half(b[:, :2]) * (2 * (high >> 12 & 7) + 1)
    shift = _DELTA * (1.0 - 2.0 * (high >> 15).float())
    points = grid[codes].reshape(len(b), 8, -1) + shift[..., None]
    return (scale[..., None] * points).reshape(len(b), -1)


def iq1_m(b: Tensor, grid: Tensor) -> Tensor:
    scales, high = words(b[:, 48:], 2), planes(b[:, 32:48], 1, 4)
    # The top four bits of the four words are one float16.
    bits = (scales >> 12 << (4 * torch.arange(4, device=b.device))).sum(1, keepdim=True)
    whole = torch.stack([bits & 255, bits >> 8], dim=-1).to(torch.uint8).reshape(len(b), 2)
    scale = half(whole) * (2 * split(scales, 3, 4).reshape(len(b), -1) + 1)
    points = grid[b[:, :32].to(torch.int32) | (high & 7) << 8]
    points = points + (_DELTA * (1.0 - 2.0 * (high >> 3).float()))[..., None]
    return (scale[..., None] * points.reshape(len(b), 16, -1)).reshape(len(b), -1)


def _sign_bits(raw: Tensor) -> Tensor:
    return 1.0 - 2.0 * planes(raw, 1, 1).float()


def _scaled(scale: Tensor, points: Tensor, sign: Tensor) -> Tensor:
    """scale[n, parts] × the n × 256 values of ``points`` × as many signs."""
    values = scale[..., None] * points.reshape(*scale.shape, -1)
    return values.reshape(len(scale), -1) * sign.reshape(len(scale), -1)
