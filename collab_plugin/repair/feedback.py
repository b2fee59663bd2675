"""Error feedback: what to hand a quantization kernel so that its errors cancel in the layer's output.

A kernel weighs the error e of a row by column, Σ_j w_j e_j²; what the row's output errs by is Σ_t c_t (e · x_t)², with
x_t what the matrix multiplies and c_t how much that output counts for token t. With H = Σ_t c_t x_t x_tᵀ / n, its
diagonal D, and S = (1 - s) H + s D, the row w gets the target w + f η p, where p = D⁻¹ S e - e asks back from each
column what the errors of the others do through it, and η = (e S p) / (p S p) is the best length of that step. The
kernel rounds the target in its own way, so the format does not change; the row takes it where e S e fell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
STEPS = (0.7, 0.5, 0.35)
"""f of each try: 0.53, 0.52 and 0.44 of the error is left on the tokens that it saw with (0.5,), (0.5, 0.5) and these
(gate and up of tiny-qwen3moe at IQ3_XXS)."""

SHRINK = 0.3
"""s. On held-out tokens 0.1, 0.3 and 0.6 leave 0.49, 0.49 and 0.51 of the error of gate and up, 0.60, 0.60 and 0.61 of
that of down (tiny-qwen3moe at IQ2_XXS, 1,024 tokens)."""

MOST_TOKENS = 2048
"""Of an expert; more cost time and hardly tell anything new."""


@dataclass(frozen=True)
class Moments:
    """``inputs`` f32[t, n]: what a matrix multiplies. ``costs`` f32[r, t]: c of each row; None: all alike."""

    inputs: F32
    costs: F32 | None = None

    @classmethod
    def weighed(cls, inputs: F32, slopes: F32) -> Moments:
        """``slopes`` f32[t, r]: how much what counts moves with the output of each row; only ratios in a row matter."""
        costs = np.square(slopes).T
        return cls(inputs, costs / np.maximum(costs.mean(1, keepdims=True), np.float32(1e-30)))

    @cached_property
    def diagonal(self) -> F32:
        """D, f32[r or 1, n], never quite zero."""
        squares = np.square(self.inputs)
        found = squares.mean(0, keepdims=True) if self.costs is None else self.costs @ squares / len(squares)
        return np.asarray(np.maximum(found, 1e-6 * found.max(1, keepdims=True) + 1e-30), np.float32)

    def times(self, errors: F32) -> F32:
        """e S of each row, f32[r, n]."""
        outputs = errors @ self.inputs.T
        if self.costs is not None:
            outputs *= self.costs
        found = outputs @ self.inputs
        found *= (1 - SHRINK) / len(self.inputs)
        found += SHRINK * self.diagonal * errors
        return np.asarray(found, np.float32)


def fed_back(values: F32, moments: Moments, rounded: Callable[[F32], F32]) -> F32:
    """Targets f32[r, n] for the rows ``values`` f32[r, n], each of which ``rounded`` brings nearer in output.

    ``rounded`` is what the kernel makes of rows, f32[r, n]. A row that nothing helps is its own target.
    """
    best = values
    errors = values - rounded(values)
    felt = moments.times(errors)
    least = _dot(felt, errors)
    for step in STEPS:
        ask = felt / moments.diagonal - errors
        length = _dot(felt, ask) / np.maximum(_dot(moments.times(ask), ask), 1e-30)
        target = values + np.asarray(step * length, np.float32)[:, None] * ask
        finite = np.isfinite(target).all(1, keepdims=True)  # kernels may end the process on others
        target = np.where(finite, target, values)
        tried = values - rounded(target)
        tried_felt = moments.times(tried)
        error = _dot(tried_felt, tried)
        won = (error < least)[:, None]
        best = np.where(won, target, best)
        errors, felt = np.where(won, tried, errors), np.where(won, tried_felt, felt)
        least = np.minimum(least, error)
    return best


def _dot(a: F32, b: F32) -> NDArray[np.float64]:
    return np.asarray(np.einsum("rn,rn->r", a, b, dtype=np.float64))
