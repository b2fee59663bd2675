"""The products of all experts of a layer, with gradients written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor


def padded(counts: Tensor) -> Tensor:
    """Rows of each expert in a sorted batch: oneDNN builds a kernel per shape, so there should be few."""
    return (counts + 31) // 32 * 32


class GroupedExperts(torch.autograd.Function):
    """SwiGLU experts over tokens sorted by expert, in ``kind``'s precision, with gradients of f32.

    x f32[N, D], rows i64[P] (the token of each sorted row, with padding of weight 0), slots i64[N, k] (where a
    token's rows are), sizes (rows of each expert), weights f32[N, k], gate_up f32[E, 2F, D], down f32[E, D, F]
    -> f32[N, D]. Indexing a stack by expert inside autograd would make a gradient of its full size each time;
    here every weight's gradient is written once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor, slots: Tensor, sizes: list[int], weights: Tensor, gate_up: Tensor,
        down: Tensor, kind: torch.dtype,
    ) -> Tensor:  # fmt: skip
        gate_up, down = gate_up.to(kind), down.to(kind)
        xs = x.to(kind)[rows]
        both = torch.empty(len(rows), gate_up.shape[1], dtype=kind)
        y = torch.empty(len(rows), down.shape[1], dtype=kind)
        for e, (s, t) in spans(sizes):
            torch.mm(xs[s:t], gate_up[e].T, out=both[s:t])
            g, u = both[s:t].chunk(2, -1)
            torch.mm(fn.silu(g) * u, down[e].T, out=y[s:t])
        ctx.save_for_backward(xs, rows, slots, weights, both, y, gate_up, down)
        ctx.sizes = sizes
        return fn.embedding_bag(slots, y, mode="sum", per_sample_weights=weights.to(kind)).float()

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        xs, rows, slots, weights, both, y, gate_up, down = ctx.saved_tensors
        kind = xs.dtype
        of_rows = torch.zeros(len(rows), 1, dtype=kind)
        of_rows[slots.flatten(), 0] = weights.flatten().to(kind)
        dy = dout.to(kind)[rows]
        dweights = torch.empty(len(rows), dtype=kind)
        dx = torch.empty_like(xs)
        d_down, d_gate_up = (torch.empty(w.shape, dtype=torch.float32) for w in (down, gate_up))
        for e, size in enumerate(ctx.sizes):
            if not size:
                d_down[e].zero_()
                d_gate_up[e].zero_()
        for e, (s, t) in spans(ctx.sizes):
            # Expert by expert, so that what one needs stays in the cache.
            dweights[s:t] = (dy[s:t] * y[s:t]).sum(-1)
            d = dy[s:t] * of_rows[s:t]
            g, u = both[s:t].chunk(2, -1)
            sig = torch.sigmoid(g)
            act = g * sig
            d_down[e] = d.T @ (act * u)
            dh = d @ down[e]
            d_both = torch.cat((dh * u * (sig + act * (1 - sig)), dh * act), -1)
            d_gate_up[e] = d_both.T @ xs[s:t]
            torch.mm(d_both, gate_up[e], out=dx[s:t])
        into = fn.embedding_bag(slots, dx, mode="sum").float()
        return into, None, None, None, dweights.float()[slots], d_gate_up, d_down, None


def spans(sizes: list[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Experts that have rows, with where those start and end."""
    start = 0
    for expert, size in enumerate(sizes):
        if size:
            yield expert, (start, start + size)
        start += size
