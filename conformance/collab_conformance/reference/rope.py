"""Rotary position embedding in float64."""

from __future__ import annotations

import math

import torch

from collab_conformance.reference.hyperparameters import Rope, Yarn


def rotary_angles(rope: Rope, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines f64[tokens, dimensions / 2] of positions 0, 1, ..."""
    pair = torch.arange(0, rope.dimensions, 2, dtype=torch.float64)
    frequency = rope.base ** (-pair / rope.dimensions) / rope.linear
    if rope.yarn:
        frequency = _stretch(frequency, rope, rope.yarn)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
    magnitude = rope.yarn.magnitude if rope.yarn else 1.0
    return angle.cos() * magnitude, angle.sin() * magnitude


def _stretch(frequency: torch.Tensor, rope: Rope, yarn: Yarn) -> torch.Tensor:
    """YaRN: slow channels are interpolated by ``factor``, fast ones kept, a ramp between."""

    def channel(rotations: float) -> float:
        """The channel pair that turns so many times in the original context."""
        return rope.dimensions * math.log(yarn.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low = max(math.floor(channel(yarn.beta_fast)), 0)
    high = min(math.ceil(channel(yarn.beta_slow)), rope.dimensions - 1)
    step = torch.arange(len(frequency), dtype=torch.float64)
    ramp = ((step - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency / yarn.factor * ramp + frequency * (1 - ramp)


def rotate(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], interleaved: bool) -> torch.Tensor:
    """Rotate the first channels of ``x`` [tokens, heads, length]; channels beyond the rotary ones stay."""
    cos, sin = (part[:, None, :] for part in angles)
    count = 2 * cos.shape[-1]
    turned, rest = x[..., :count], x[..., count:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    return torch.cat((turned, rest), -1)
