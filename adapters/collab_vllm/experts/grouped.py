"""Experts one after the other in PyTorch, each over all the tokens that chose it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

I64 = NDArray[np.int64]
Weights = Callable[[int], tuple[Tensor, Tensor, Tensor]]
"""Gate [I, H], up [I, H] and down [H, I] of an expert, at the activations' type and device."""


def grouped_experts(x: Tensor, weights: Tensor, ids: Tensor, matrices: Weights) -> Tensor:
    """Sum of the chosen experts' outputs: x [tokens, H], ``weights`` and ``ids`` [tokens, k] to [tokens, H].

    SwiGLU. ``matrices`` is asked once for each expert that a token chose; ids below 0 are other ranks'.
    Sums are kept in float32.
    """
    chosen = ids.reshape(-1).cpu().numpy().astype(np.int64)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    return add_experts(out, x, weights, chosen, sorted_places(chosen, chosen >= 0), matrices).to(x.dtype)


def sorted_places(chosen: I64, wanted: NDArray[np.bool_]) -> I64:
    """Where ``wanted``, in the order of the experts ``chosen`` there."""
    places = np.flatnonzero(wanted)
    return places[np.argsort(chosen[places], kind="stable")]


def add_experts(out: Tensor, x: Tensor, weights: Tensor, chosen: I64, places: I64, matrices: Weights) -> Tensor:
    """Add to ``out`` f32[tokens, H] what pairs of a token and an expert contribute.

    ``chosen``: experts of all pairs, token after token, as ``weights`` [tokens, k] has them; ``places``: which pairs,
    sorted by expert.
    """
    used = weights.shape[1]
    share = weights.reshape(-1).to(torch.float32)
    where = torch.from_numpy(places).to(x.device)
    experts, starts = np.unique(chosen[places], return_index=True)
    for expert, start, end in zip(experts, starts, [*starts[1:], len(places)], strict=True):
        part = where[start:end]
        tokens = part // used
        gate, up, down = matrices(int(expert))
        rows = x[tokens]
        hidden = functional.silu(functional.linear(rows, gate)) * functional.linear(rows, up)
        result = functional.linear(hidden, down).to(torch.float32)
        out.index_add_(0, tokens, result * share[part, None])
    return out
