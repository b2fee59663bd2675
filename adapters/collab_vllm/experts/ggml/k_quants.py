"""Blocks of 32 values with one scale, and the K types: super-blocks of 256 (ggml-common.h).

Each function takes uint8[n, block bytes] and returns f32[n, block values]; IQ4 types take their f32[16] steps too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collab_vllm.experts.ggml.fields import half, planes, signed


def q8_0(b: Tensor) -> Tensor:
    return half(b[:, :2]) * signed(b[:, 2:])


def q4_0(b: Tensor) -> Tensor:
    return half(b[:, :2]) * (planes(b[:, 2:], 16, 4) - 8)


def q5_0(b: Tensor) -> Tensor:
    return half(b[:, :2]) * ((planes(b[:, 6:], 16, 4) | planes(b[:, 2:6], 1, 1) << 4) - 16)


def q5_1(b: Tensor) -> Tensor:
    q = planes(b[:, 8:], 16, 4) | planes(b[:, 4:8], 1, 1) << 4
    return half(b[:, :2]) * q + half(b[:, 2:4])


def iq4_nl(b: Tensor, steps: Tensor) -> Tensor:
    return half(b[:, :2]) * steps[planes(b[:, 2:], 16, 4)]


def iq4_xs(b: Tensor, steps: Tensor) -> Tensor:
    scale = (planes(b[:, 4:8], 1, 4) | planes(b[:, 2:4], 1, 2) << 4) - 32
    return _scaled(half(b[:, :2]) * scale, steps[planes(b[:, 8:], 16, 4)])


def q2_k(b: Tensor) -> Tensor:
    scales = b[:, :16].to(torch.int32)
    scale, least = half(b[:, 80:82]) * (scales & 15), half(b[:, 82:84]) * (scales >> 4)
    return _scaled(scale, planes(b[:, 16:80], 32, 2), least)


def q3_k(b: Tensor) -> Tensor:
    scale = (planes(b[:, 96:104], 8, 4) | planes(b[:, 104:108], 4, 2) << 4) - 32
    q = planes(b[:, 32:96], 32, 2) + 4 * planes(b[:, :32], 32, 1) - 4
    return _scaled(half(b[:, 108:110]) * scale, q)


def q4_k(b: Tensor) -> Tensor:
    scale, least = _scales_and_minima(b)
    return _scaled(scale, planes(b[:, 16:], 32, 4), least)


def q5_k(b: Tensor) -> Tensor:
    scale, least = _scales_and_minima(b)
    return _scaled(scale, planes(b[:, 48:], 32, 4) | planes(b[:, 16:48], 32, 1) << 4, least)


def q6_k(b: Tensor) -> Tensor:
    q = (planes(b[:, :128], 64, 4) | planes(b[:, 128:192], 32, 2) << 4) - 32
    return _scaled(half(b[:, 208:210]) * signed(b[:, 192:208]), q)


def _scaled(scale: Tensor, q: Tensor, least: Tensor | None = None) -> Tensor:
    """scale[n, parts] × q[n, values] - least[n, parts], each for its part of the values."""
    parts = q.reshape(*scale.shape, -1)
    values = scale[..., None] * parts
    return (values if least is None else values - least[..., None]).reshape(q.shape)


def _scales_and_minima(b: Tensor) -> tuple[Tensor, Tensor]:
    """f32[n, 8] each, from twelve bytes: six bits in the first eight, or four in the last and two in the first."""
    first, second, third = b[:, 4:16].to(torch.int32).reshape(-1, 3, 4).unbind(1)
    scale = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=1)
    least = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=1)
    return half(b[:, :2]) * scale, half(b[:, 2:4]) * least
