"""What the blocks of a decoder are made of: a norm, matrices, a dense feed-forward part."""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from benchmarks.train.shapes import Shape


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def linear(out: int, width: int, std: float | None = None) -> nn.Parameter:
    return nn.Parameter(torch.randn(out, width) * (std or 0.7 / width**0.5))


class DenseFeedForward(nn.Module):
    def __init__(self, s: Shape, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(width, s.width), linear(width, s.width)
        self.down_proj = linear(s.width, width)

    def forward(self, x: Tensor) -> Tensor:
        return (fn.silu(x @ self.gate_proj.T) * (x @ self.up_proj.T)) @ self.down_proj.T
