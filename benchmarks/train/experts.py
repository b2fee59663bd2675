"""Routers and routed experts as Qwen, OLMoE, Mixtral and DeepSeek compute them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.train.grouped_experts import GroupedExperts, padded
from benchmarks.train.layers import DenseFeedForward, linear
from benchmarks.train.shapes import Shape


class Experts(nn.Module):
    """Routed experts and, in some families, a shared one. ``used``, ``allowed`` may be changed to prune."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s, self.used = s, s.used
        e, f, d = s.experts, s.expert_width, s.width
        self.gate = linear(e, d, 0.04)
        self.gate_up = nn.Parameter(torch.randn(e, 2 * f, d) * 0.7 / d**0.5)
        self.down = nn.Parameter(torch.randn(e, d, f) * 0.7 / f**0.5 / (2 * s.layers) ** 0.5)
        self.register_buffer("bias", torch.zeros(e))
        self.register_buffer("allowed", torch.ones(e, dtype=torch.bool))
        self.shared = DenseFeedForward(s, s.shared_width) if s.shared_width else None
        self.shared_gate = linear(1, d, 0.04) if s.family == "qwen2" else None
        # Share of tokens that train without the shared expert, so that routed ones carry weight.
        self.shared_dropout = 0.0
        self.precision = torch.float32
        self.balance = torch.zeros(())
        self.load = torch.zeros(e)
        self.chosen: tuple[Tensor, Tensor] | None = None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, D] -> expert ids [N, k] and weights [N, k]."""
        s, logits = self.s, x @ self.gate.T
        if s.family == "deepseek":
            scores = logits.sigmoid()
            choice = (scores + self.bias).masked_fill(~self.allowed, float("-inf"))
            grouped = choice.view(-1, s.groups, s.experts // s.groups)
            best = grouped.topk(2, -1).values.sum(-1).topk(s.groups_used, -1).indices
            mask = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter_(1, best, True)
            choice = grouped.masked_fill(~mask[..., None], float("-inf")).flatten(1)
        else:
            scores = logits.masked_fill(~self.allowed, float("-inf")).softmax(-1)
            choice = scores
        ids = choice.topk(self.used, -1).indices
        weights = scores.gather(1, ids)
        if s.renormalises:
            weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if s.family == "deepseek" else 0))
        share = torch.bincount(ids.flatten(), minlength=s.experts) / ids.numel()
        self.load = share
        self.balance = s.experts * (share * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum()
        return ids, weights * s.scale

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast("cpu", enabled=False):
            ids, weights = self.route(flat.float())
        if not torch.is_grad_enabled():
            self.chosen = (ids, weights)
        counts = torch.bincount(ids.flatten(), minlength=self.s.experts)
        sizes = padded(counts)
        order = ids.flatten().argsort(stable=True)
        shift = ((sizes.cumsum(0) - sizes) - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        at = torch.arange(len(order)) + shift
        rows = torch.zeros(int(sizes.sum()), dtype=torch.int64)
        rows[at] = order // self.used
        slots = torch.empty_like(order)
        slots[order] = at
        out = GroupedExperts.apply(
            flat.float(), rows, slots.view_as(ids), sizes.tolist(), weights, self.gate_up, self.down, self.precision
        )
        if self.shared is not None:
            shared = self.shared(flat)
            if self.shared_gate is not None:
                shared = shared * torch.sigmoid(flat @ self.shared_gate.T)
            if self.shared_dropout and torch.is_grad_enabled():
                shared = shared * (torch.rand(len(flat), 1) >= self.shared_dropout)
            out = out + shared
        return out.view_as(x)
