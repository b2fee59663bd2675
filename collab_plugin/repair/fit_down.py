"""New down matrices for the kept experts of a layer, by least squares: they take over what the dropped ones did.

With x a token's input, T(x) what the whole layer's experts gave, and z_e = g_e h_e the hidden values of an expert that
the pruned router chose, times its weight:

    minimise over all Δ:  Σ_x ‖ T(x) - Σ_e (W_e + Δ_e) z_e(x) ‖²  +  Σ_e μ_e ‖Δ_e‖²

with μ_e = λ times the mean diagonal of Σ z_e z_eᵀ,

expert by expert, each against what the others leave, a few times over. λ is the one whose fit to four fifths of the
windows leaves the least error on the last fifth; where none lowers it the layer stays as it is.

No column of the output waits for another, so pieces of columns are fitted side by side. They are cut alike whatever the
number of threads, and added up in their order: so are the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dtpttr, dtrttp

from collab_plugin.repair.routed_block import RoutedBlock, RoutedTokens

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
RIDGES = (0.1, 0.3, 1.0, 3.0)
SWEEPS = 3
HELD_OUT = 5
"""Every fifth window is held out."""
COLUMNS = 128
"""Of the output, fitted together: all of 256 kept experts of DeepSeek-V3 change by 268 MB in them."""
WHOLE = 256
"""An output of so many columns is one piece."""
JUDGED = 8
"""Pieces that λ is judged on at most, evenly spaced: a thousand columns of the held-out tokens tell it."""


@dataclass(frozen=True)
class LayerRepair:
    """``ridge``: λ, 0 where nothing helped. ``before`` and ``after``: squared error of the pruned block's output on
    held-out tokens, as a share of the output's square; of wide layers over the columns that λ is judged on."""

    ridge: float
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

    def gram(self) -> F64:
        """The smaller of the two Gram matrices."""
        z = self.hidden
        return (z @ z.T if self.few else z.T @ z).astype(np.float64)

    def among(self, tokens: Mask | None) -> Taken:
        """Those of the layer's ``tokens`` that are true; None: all."""
        if tokens is None:
            return self
        here = tokens[self.rows]
        return Taken(self.rows[here], self.hidden[here])


def taken_by(
    block: RoutedBlock, inputs: F32, kept: tuple[int, ...], choice: RoutedTokens, pool: Executor
) -> dict[int, Taken]:
    """What each of the ``kept`` experts gets of ``inputs`` f32[n, d] as the router makes its ``choice``; not those that
    get nothing."""

    def one(expert: int) -> Taken:
        rows, weights = choice.by_expert(expert)
        return Taken(rows, block.weighted_hidden(inputs, rows, weights, expert))

    found = zip(kept, pool.map(one, kept), strict=True)
    return {expert: taken for expert, taken in found if len(taken.rows)}


def pieces_of(columns: int) -> tuple[slice, ...]:
    """The pieces that an output of so many columns is fitted in."""
    step = columns if columns <= WHOLE else COLUMNS
    return tuple(slice(at, min(at + step, columns)) for at in range(0, columns, step))


def held_out(tokens: int, ctx: int) -> Mask:
    """Which of so many tokens, in windows of ``ctx``, are not fitted to."""
    return np.asarray(np.arange(tokens) // ctx % HELD_OUT == HELD_OUT - 1)


@dataclass(frozen=True)
class Goal:
    """What the kept experts as they are leave of a layer's outputs: ``missing`` f32[n, c] by piece of columns.
    ``held``: the tokens that λ is judged on. ``outputs``: sum of the squares of their outputs by piece."""

    missing: tuple[F32, ...]
    held: Mask
    outputs: tuple[float, ...]

    @classmethod
    def of(cls, block: RoutedBlock, outputs: F32, ctx: int, taken: Mapping[int, Taken], pool: Executor) -> Goal:
        """Of ``outputs`` f32[n, d], in windows of ``ctx`` tokens, where experts get what is ``taken``."""
        pieces = pieces_of(outputs.shape[1])
        held = held_out(len(outputs), ctx)

        def without(piece: slice) -> F32:
            missing = outputs[:, piece].copy()
            for expert, t in taken.items():
                missing[t.rows] -= t.hidden @ block.checkpoint.read(block.down, expert=expert, rows=piece).T
            return missing

        squares = tuple(pool.map(lambda piece: _square(outputs[:, piece][held]), pieces))
        return cls(tuple(pool.map(without, pieces)), held, squares)


class LayerFit:
    """The layer whose experts get what is ``taken``, fitted to its ``goal``; work is done in ``pool``.

    Holds the factors of all λ while one is chosen, and then of that one: 4 m (m + 1) bytes an expert and λ, m being the
    smaller of its tokens and hidden values.
    """

    def __init__(self, goal: Goal, taken: Mapping[int, Taken], pool: Executor) -> None:
        self._goal, self._taken, self._pool = goal, taken, pool
        held, count = goal.held, len(goal.missing)
        judged = range(0, count, -(-count // JUDGED))
        scale = sum(goal.outputs[i] for i in judged) or 1.0
        missing = [goal.missing[i] for i in judged]
        before = sum(_square(some[held]) for some in missing) / scale
        best, ridge = before, 0.0
        if held.any() and not held.all():
            for candidate, left in zip(RIDGES, self._left(missing), strict=True):
                if left / scale < best:
                    best, ridge = left / scale, candidate
        self.repair = LayerRepair(ridge, before, best)
        self._solvers = self._factored(ridge, None) if ridge else {}

    def deltas(self, number: int) -> dict[int, F32]:
        """What piece ``number`` of the rows of the down matrices changes by, f32[c, f] by original id of the kept
        expert; empty where nothing helped."""
        return _deltas(self._solvers, self._goal.missing[number]) if self._solvers else {}

    def _factored(self, ridge: float, tokens: Mask | None) -> dict[int, _Ridge]:
        made = self._pool.map(lambda t: _Ridge.of(t, tokens, ridge), self._taken.values())
        return {expert: solver for expert, solver in zip(self._taken, made, strict=True) if solver is not None}

    def _left(self, missing: Sequence[F32]) -> list[float]:
        """Squared error that a fit to the other tokens leaves of those held out, of the pieces ``missing``, by λ."""
        held = self._goal.held
        solvers = [self._factored(ridge, ~held) for ridge in RIDGES]

        def one(task: tuple[int, F32]) -> float:
            number, some = task
            rest = some.copy()
            for expert, delta in _deltas(solvers[number], some).items():
                t = self._taken[expert].among(held)
                rest[t.rows] -= t.hidden @ delta.T
            return _square(rest[held])

        left = list(self._pool.map(one, [(number, some) for number in range(len(RIDGES)) for some in missing]))
        return [sum(left[at : at + len(missing)]) for at in range(0, len(left), len(missing))]


def _square(values: F32) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _deltas(solvers: Mapping[int, _Ridge], missing: F32) -> dict[int, F32]:
    rest = missing.copy()
    deltas: dict[int, F32] = {}
    for _ in range(SWEEPS):
        for expert, solver in solvers.items():
            t = solver.seen()
            target = rest[t.rows]
            if expert in deltas:
                target = target + t.hidden @ deltas[expert].T
            deltas[expert] = solver.solve(t, target)
            rest[t.rows] = target - t.hidden @ deltas[expert].T
    return deltas


@dataclass(frozen=True)
class _Ridge:
    """Δ f32[d, f] that minimises ‖Y - Z Δᵀ‖² + μ ‖Δ‖². ``factor``: the lower triangle, f64[m (m + 1) / 2]."""

    taken: Taken
    tokens: Mask | None
    size: int
    factor: F64

    @classmethod
    def of(cls, taken: Taken, tokens: Mask | None, ridge: float) -> _Ridge | None:
        """None where the expert sees nothing."""
        seen = taken.among(tokens)
        if not len(seen.rows):
            return None
        gram = seen.gram()
        mean = max(float(np.trace(gram)) / seen.hidden.shape[1], 1e-30)
        gram[np.diag_indices(len(gram))] += ridge * mean
        factor, _ = cho_factor(gram, lower=True, overwrite_a=True)
        packed, _ = dtrttp(factor, uplo="L")
        return cls(taken, tokens, len(gram), packed)

    def seen(self) -> Taken:
        """The tokens and their hidden values, which are not kept a second time."""
        return self.taken.among(self.tokens)

    def solve(self, seen: Taken, target: F32) -> F32:
        factor, _ = dtpttr(self.size, self.factor, uplo="L")
        if seen.few:
            return np.asarray(cho_solve((factor, True), target).T @ seen.hidden, np.float32)
        return np.asarray(cho_solve((factor, True), seen.hidden.T @ target).T, np.float32)
