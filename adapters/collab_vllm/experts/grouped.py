"""Experts one after the other, each over all the tokens that chose it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Weights = Callable[[int], tuple[Tensor, Tensor, Tensor]]
"""Gate [I, H], up [I, H] and down [H, I] of an expert, at the activations' type and device."""


def grouped_experts(x: Tensor, weights: Tensor, ids: Tensor, experts: int, matrices: Weights) -> Tensor:
    """Sum of the chosen experts' outputs: x [tokens, H], ``weights`` and ``ids`` [tokens, k] to [tokens, H].

    SwiGLU. ``matrices`` is asked once for each expert that a token chose; ids below 0 are other ranks'.
    Sums are kept in float32.
    """
    k = ids.shape[1]
    chosen = ids.reshape(-1).to(torch.int64) + 1
    order = torch.argsort(chosen, stable=True)
    counts = torch.bincount(chosen, minlength=experts + 1).tolist()
    share = weights.reshape(-1).to(torch.float32)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    start = counts[0]
    for expert, count in enumerate(counts[1:]):
        if count == 0:
            continue
        places = order[start : start + count]
        start += count
        tokens = places // k
        gate, up, down = matrices(expert)
        rows = x[tokens]
        hidden = functional.silu(functional.linear(rows, gate)) * functional.linear(rows, up)
        result = functional.linear(hidden, down).to(torch.float32)
        out.index_add_(0, tokens, result * share[places, None])
    return out.to(x.dtype)
