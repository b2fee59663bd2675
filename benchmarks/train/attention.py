"""Attention as Qwen, OLMoE, Mixtral and DeepSeek compute it."""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from benchmarks.train.layers import Norm, linear
from benchmarks.train.shapes import Shape


def rotate(x: Tensor, theta: float, interleaved: bool) -> Tensor:
    """Rotary embedding of x [B, H, T, R]."""
    size, length = x.shape[-1], x.shape[-2]
    freq = theta ** (-torch.arange(0, size, 2) / size)
    angle = torch.outer(torch.arange(length), freq)
    cos, sin = angle.cos(), angle.sin()
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    a, b = x[..., : size // 2], x[..., size // 2 :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class GroupedQueryAttention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_proj = linear(s.heads * s.head, s.width)
        self.k_proj = linear(s.kv_heads * s.head, s.width)
        self.v_proj = linear(s.kv_heads * s.head, s.width)
        self.o_proj = linear(s.width, s.heads * s.head)
        if s.family == "qwen3":
            self.q_norm, self.k_norm = Norm(s.head), Norm(s.head)
        elif s.family == "olmoe":  # over all heads together
            self.q_norm, self.k_norm = Norm(s.heads * s.head), Norm(s.kv_heads * s.head)
        elif s.family == "qwen2":
            self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(n * s.head)) for n in self.head_counts)

    @property
    def head_counts(self) -> tuple[int, int, int]:
        return self.s.heads, self.s.kv_heads, self.s.kv_heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        s = self.s
        q, k, v = (x @ p.T for p in (self.q_proj, self.k_proj, self.v_proj))
        if s.family == "olmoe":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (z.view(b, t, n, s.head) for z, n in zip((q, k, v), self.head_counts, strict=True))
        if s.family == "qwen3":
            q, k = self.q_norm(q), self.k_norm(k)
        elif s.family == "qwen2":
            q, k, v = (
                q + self.q_bias.view(-1, s.head),
                k + self.k_bias.view(-1, s.head),
                v + self.v_bias.view(-1, s.head),
            )
        q, k = (rotate(z.transpose(1, 2), s.theta, False).to(x.dtype) for z in (q, k))
        v = v.transpose(1, 2).to(x.dtype)
        n = s.heads // s.kv_heads
        y = fn.scaled_dot_product_attention(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1), is_causal=True)
        return y.transpose(1, 2).reshape(b, t, -1) @ self.o_proj.T


class LatentAttention(nn.Module):
    """DeepSeek's MLA with compressed queries; rope 32, no-rope 64, value 64 a head."""

    def __init__(self, s: Shape, q_rank: int = 256, kv_rank: int = 256) -> None:
        super().__init__()
        self.s = s
        self.q_a_proj, self.q_a_layernorm = linear(q_rank, s.width), Norm(q_rank)
        self.q_b_proj = linear(s.heads * (s.head + s.rope), q_rank)
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = linear(kv_rank + s.rope, s.width), Norm(kv_rank)
        self.kv_b_proj = linear(s.heads * 2 * s.head, kv_rank)
        self.o_proj = linear(s.width, s.heads * s.head)
        self.kv_rank = kv_rank

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        s = self.s
        q = self.q_a_layernorm(x @ self.q_a_proj.T) @ self.q_b_proj.T
        q = q.view(b, t, s.heads, s.head + s.rope).transpose(1, 2)
        kv, k_rope = (x @ self.kv_a_proj_with_mqa.T).split([self.kv_rank, s.rope], -1)
        kv = (self.kv_a_layernorm(kv) @ self.kv_b_proj.T).view(b, t, s.heads, 2 * s.head).transpose(1, 2)
        k, v = kv.split([s.head, s.head], -1)
        q = torch.cat((q[..., : s.head], rotate(q[..., s.head :], s.theta, True)), -1)
        k_rope = rotate(k_rope[:, None], s.theta, True).expand(-1, s.heads, -1, -1)
        y = fn.scaled_dot_product_attention(q, torch.cat((k, k_rope), -1), v, is_causal=True)
        return y.transpose(1, 2).reshape(b, t, -1) @ self.o_proj.T
