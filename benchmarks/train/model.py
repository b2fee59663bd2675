"""Plain PyTorch decoders of the two tiny families, as Hugging Face and llama.cpp compute them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``kind`` is "qwen" or "deepseek"."""

    kind: str
    vocabulary: int = 3072
    width: int = 256
    layers: int = 3
    dense: int = 0
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    rope: int = 32
    experts: int = 32
    used: int = 4
    groups: int = 1
    groups_used: int = 1
    expert_width: int = 256
    dense_width: int = 512
    scale: float = 1.0
    theta: float = 10000.0


QWEN = Shape("qwen")
DEEPSEEK = Shape("deepseek", layers=4, dense=1, groups=4, groups_used=2, scale=2.0)


class GroupedExperts(torch.autograd.Function):
    """SwiGLU experts over tokens sorted by expert: x [N, D] sorted, counts [E] -> y [N, D].

    Indexing a 3-D parameter per expert inside autograd makes a full-size gradient each time; here
    every weight gradient is written once, in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], wg: Tensor, wu: Tensor, wd: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], wd.shape[1])
        g, u = (torch.empty(x.shape[0], wg.shape[1]) for _ in range(2))
        s = 0
        for e, n in enumerate(counts):
            t = s + n
            if n:
                torch.mm(x[s:t], wg[e].T, out=g[s:t])
                torch.mm(x[s:t], wu[e].T, out=u[s:t])
                torch.mm(fn.silu(g[s:t]) * u[s:t], wd[e].T, out=y[s:t])
            s = t
        ctx.save_for_backward(x, g, u, wg, wu, wd)
        ctx.counts = counts
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, g, u, wg, wu, wd = ctx.saved_tensors
        dx = torch.empty_like(x)
        dwg, dwu, dwd = (torch.zeros_like(w) for w in (wg, wu, wd))
        sig = torch.sigmoid(g)
        act = g * sig
        slope = sig * (1 + g * (1 - sig))
        s = 0
        for e, n in enumerate(ctx.counts):
            t = s + n
            if n:
                d = dy[s:t]
                torch.mm(d.T, act[s:t] * u[s:t], out=dwd[e])
                dh = d @ wd[e]
                dg = dh * u[s:t] * slope[s:t]
                du = dh * act[s:t]
                torch.mm(dg.T, x[s:t], out=dwg[e])
                torch.mm(du.T, x[s:t], out=dwu[e])
                torch.mm(dg, wg[e], out=dx[s:t])
                dx[s:t].addmm_(du, wu[e])
            s = t
        return dx, None, dwg, dwu, dwd


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def linear(out: int, width: int, std: float | None = None) -> nn.Parameter:
    return nn.Parameter(torch.randn(out, width) * (std or 0.7 / width**0.5))


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
        self.q_norm, self.k_norm = Norm(s.head), Norm(s.head)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        s = self.s
        q = (x @ self.q_proj.T).view(b, t, s.heads, s.head)
        k = (x @ self.k_proj.T).view(b, t, s.kv_heads, s.head)
        v = (x @ self.v_proj.T).view(b, t, s.kv_heads, s.head).transpose(1, 2)
        q = rotate(self.q_norm(q).transpose(1, 2), s.theta, False)
        k = rotate(self.k_norm(k).transpose(1, 2), s.theta, False)
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


class DenseFeedForward(nn.Module):
    def __init__(self, s: Shape, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(width, s.width), linear(width, s.width)
        self.down_proj = linear(s.width, width)

    def forward(self, x: Tensor) -> Tensor:
        return (fn.silu(x @ self.gate_proj.T) * (x @ self.up_proj.T)) @ self.down_proj.T


class Experts(nn.Module):
    """Routed experts and, for DeepSeek, a shared one. ``used``, ``allowed`` may be changed to prune."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s, self.used = s, s.used
        e, f, d = s.experts, s.expert_width, s.width
        self.gate = linear(e, d, 0.04)
        self.wg = nn.Parameter(torch.randn(e, f, d) * 0.7 / d**0.5)
        self.wu = nn.Parameter(torch.randn(e, f, d) * 0.7 / d**0.5)
        self.wd = nn.Parameter(torch.randn(e, d, f) * 0.7 / f**0.5 / (2 * s.layers) ** 0.5)
        self.register_buffer("bias", torch.zeros(e))
        self.register_buffer("allowed", torch.ones(e, dtype=torch.bool))
        self.shared = DenseFeedForward(s, f) if s.kind == "deepseek" else None
        # Share of tokens that train without the shared expert, so that routed ones carry weight.
        self.shared_dropout = 0.0
        self.balance = torch.zeros(())
        self.load = torch.zeros(e)
        self.chosen: tuple[Tensor, Tensor] | None = None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, D] -> expert ids [N, k] and weights [N, k]."""
        s, logits = self.s, x @ self.gate.T
        if s.kind == "qwen":
            scores = logits.masked_fill(~self.allowed, float("-inf")).softmax(-1)
            choice = scores
        else:
            scores = logits.sigmoid()
            choice = (scores + self.bias).masked_fill(~self.allowed, float("-inf"))
            grouped = choice.view(-1, s.groups, s.experts // s.groups)
            best = grouped.topk(2, -1).values.sum(-1).topk(s.groups_used, -1).indices
            mask = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter_(1, best, True)
            choice = grouped.masked_fill(~mask[..., None], float("-inf")).flatten(1)
        ids = choice.topk(self.used, -1).indices
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if s.kind == "deepseek" else 0))
        share = torch.bincount(ids.flatten(), minlength=s.experts) / ids.numel()
        self.load = share
        self.balance = s.experts * (share * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum()
        return ids, weights * s.scale

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ids, weights = self.route(flat)
        if not torch.is_grad_enabled():
            self.chosen = (ids, weights)
        order = ids.flatten().argsort()
        token = order // self.used
        counts = torch.bincount(ids.flatten(), minlength=self.s.experts).tolist()
        y = GroupedExperts.apply(flat[token], counts, self.wg, self.wu, self.wd)
        out = torch.zeros_like(flat).index_add(0, token, y * weights.flatten()[order][:, None])
        if self.shared is not None:
            shared = self.shared(flat)
            if self.shared_dropout and torch.is_grad_enabled():
                shared = shared * (torch.rand(len(flat), 1) >= self.shared_dropout)
            out = out + shared
        return out.view_as(x)


class Block(nn.Module):
    def __init__(self, s: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(s.width), Norm(s.width)
        self.self_attn = GroupedQueryAttention(s) if s.kind == "qwen" else LatentAttention(s)
        self.mlp = DenseFeedForward(s, s.dense_width) if layer < s.dense else Experts(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Parameter(torch.randn(s.vocabulary, s.width) * 0.5)
        self.layers = nn.ModuleList(Block(s, i) for i in range(s.layers))
        self.norm = Norm(s.width)
        self.lm_head = linear(s.vocabulary, s.width, 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> logits [B, T, V]."""
        x = self.embed_tokens[ids]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.lm_head.T

    def expert_layers(self) -> list[Experts]:
        return [b.mlp for b in self.layers if isinstance(b.mlp, Experts)]
