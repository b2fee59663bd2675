"""Error feedback lowers what rows lose in output, by the kernel's own rounding, and leaves alone what it cannot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.repair.feedback import SHRINK, Moments, fed_back

F32 = NDArray[np.float32]


def grid(values: F32) -> F32:
    """A kernel with eight levels a row."""
    step = np.abs(values).max(1, keepdims=True) / 4
    return np.asarray(np.rint(values / step) * step, np.float32)


def matrix_and_inputs(rank: int = 12) -> tuple[F32, F32]:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((300, rank)) @ random.standard_normal((rank, 64))
    return random.standard_normal((40, 64)).astype(np.float32), inputs.astype(np.float32)


def lost(values: F32, target: F32, moments: Moments) -> NDArray[np.float64]:
    """e S e of each row."""
    errors = values - grid(target)
    return np.asarray((moments.times(errors) * errors).sum(1), np.float64)


def test_moments_are_those_of_the_formula() -> None:
    values, inputs = matrix_and_inputs()
    costs = np.random.default_rng(1).random((40, 300), np.float32)
    moments = Moments(inputs, costs)
    for row in (0, 17):
        whole = (inputs * costs[row][:, None]).T @ inputs / len(inputs)
        shrunk = (1 - SHRINK) * whole + SHRINK * np.diag(np.diag(whole))
        assert np.allclose(moments.times(values)[row], values[row] @ shrunk, rtol=1e-3, atol=1e-3)
        assert np.allclose(moments.diagonal[row], np.diag(whole), rtol=1e-3)


def test_feedback_lowers_the_output_error_and_never_raises_that_of_a_row() -> None:
    values, inputs = matrix_and_inputs()
    moments = Moments(inputs)
    before, after = lost(values, values, moments), lost(values, fed_back(values, moments, grid), moments)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.8 * before.sum()


def test_rows_that_are_exact_stay_as_they_are() -> None:
    values, inputs = matrix_and_inputs()
    values = grid(values)
    assert np.array_equal(fed_back(values, Moments(inputs), lambda rows: rows), values)


def test_costs_say_which_tokens_count() -> None:
    """With all cost on some tokens, their outputs gain more than by feedback for all alike."""
    values, inputs = matrix_and_inputs(rank=64)
    costs = np.zeros((40, 300), np.float32)
    costs[:, :40] = 300 / 40
    told = fed_back(values, Moments(inputs, costs), grid)
    untold = fed_back(values, Moments(inputs), grid)

    def output_error(target: F32) -> float:
        return float(np.square((values - grid(target)) @ inputs[:40].T).sum())

    assert output_error(told) < 0.9 * output_error(untold)
