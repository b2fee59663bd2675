"""New down matrices for the kept experts of a layer, by least squares: they take over what the dropped ones did.

With x a token's input, T(x) what the whole layer's experts gave, and z_e = g_e h_e the hidden values of an expert that
the pruned router chose, times its weight:

    minimise over all Δ:  Σ_x ‖ T(x) - Σ_e (W_e + Δ_e) z_e(x) ‖²  +  Σ_e μ_e ‖Δ_e‖²

with μ_e = λ times the mean diagonal of Σ z_e z_eᵀ,

expert by expert, each against what the others leave, a few times over. λ is the one whose fit to four fifths of the
windows leaves the least error on the last fifth; where none lowers it the layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from collab_plugin.repair.routed_block import RoutedBlock, RoutedTokens

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
RIDGES = (0.1, 0.3, 1.0, 3.0)
SWEEPS = 3
HELD_OUT = 5
"""Every fifth window is held out."""


@dataclass(frozen=True)
class LayerRepair:
    """``deltas`` f32[d, f] by original id of the kept expert, empty where nothing helped. ``before`` and ``after``:
    squared error of the pruned block's output on held-out tokens, as a share of the output's square."""

    deltas: Mapping[int, F32]
    before: float
    after: float


@dataclass(frozen=True)
class Taken:
    """Tokens ``rows`` i64[n] that an expert gets, and its ``hidden`` values there, times their weights: f32[n, f]."""

    rows: I64
    hidden: F32

    @property
    def few(self) -> bool:
        """Fewer tokens than hidden values: then tokens span all that can be learnt."""
        return bool(len(self.hidden) < self.hidden.shape[1])

    @cached_property
    def gram(self) -> F64:
        """The smaller of the two Gram matrices."""
        z = self.hidden
        return (z @ z.T if self.few else z.T @ z).astype(np.float64)


def taken_by(block: RoutedBlock, inputs: F32, kept: tuple[int, ...], choice: RoutedTokens) -> dict[int, Taken]:
    """What each of the ``kept`` experts gets of ``inputs`` f32[n, d] as the router makes its ``choice``; not those that
    get nothing."""
    found = {}
    for expert in kept:
        rows, weights = choice.by_expert(expert)
        if len(rows):
            hidden = block.hidden(inputs[rows], expert) * weights[:, None]
            found[expert] = Taken(rows, np.asarray(hidden, np.float32))
    return found


def fit_layer(block: RoutedBlock, outputs: F32, ctx: int, taken: Mapping[int, Taken]) -> LayerRepair:
    """Fit the layer whose experts get what is ``taken`` to ``outputs`` f32[n, d], in windows of ``ctx`` tokens."""
    missing = outputs.copy()
    for expert, t in taken.items():
        missing[t.rows] -= t.hidden @ block.checkpoint.read(block.down, expert=expert).T
    held = np.arange(len(outputs)) // ctx % HELD_OUT == HELD_OUT - 1
    scale = float(np.square(outputs[held], dtype=np.float64).sum()) or 1.0
    before = float(np.square(missing[held], dtype=np.float64).sum()) / scale
    best, ridge = before, 0.0
    shown = {expert: Taken(t.rows[~held[t.rows]], t.hidden[~held[t.rows]]) for expert, t in taken.items()}
    for candidate in RIDGES if held.any() and not held.all() else ():
        after = _left(missing, held, taken, _deltas(shown, missing, candidate)) / scale
        if after < best:
            best, ridge = after, candidate
    return LayerRepair(_deltas(taken, missing, ridge) if ridge else {}, before, best)


def _left(missing: F32, held: NDArray[np.bool_], taken: Mapping[int, Taken], deltas: Mapping[int, F32]) -> float:
    """Squared error that ``deltas`` leave of held-out tokens."""
    rest = missing.copy()
    for expert, delta in deltas.items():
        t = taken[expert]
        here = held[t.rows]
        rest[t.rows[here]] -= t.hidden[here] @ delta.T
    return float(np.square(rest[held], dtype=np.float64).sum())


def _deltas(taken: Mapping[int, Taken], missing: F32, ridge: float) -> dict[int, F32]:
    rest = missing.copy()
    deltas: dict[int, F32] = {}
    solvers = {expert: _Ridge(t, ridge) for expert, t in taken.items() if len(t.rows)}
    for _ in range(SWEEPS):
        for expert, solver in solvers.items():
            t = taken[expert]
            target = rest[t.rows]
            if expert in deltas:
                target = target + t.hidden @ deltas[expert].T
            deltas[expert] = solver.solve(target)
            rest[t.rows] = target - t.hidden @ deltas[expert].T
    return deltas


class _Ridge:
    """Δ f32[d, f] that minimises ‖Y - Z Δᵀ‖² + μ ‖Δ‖²."""

    def __init__(self, taken: Taken, ridge: float) -> None:
        self.hidden, self.few = taken.hidden, taken.few
        mean = max(float(np.trace(taken.gram)) / self.hidden.shape[1], 1e-30)
        self.factor = cho_factor(taken.gram + ridge * mean * np.eye(len(taken.gram)), lower=True, overwrite_a=True)

    def solve(self, target: F32) -> F32:
        if self.few:
            return np.asarray(cho_solve(self.factor, target).T @ self.hidden, np.float32)
        return np.asarray(cho_solve(self.factor, self.hidden.T @ target).T, np.float32)
