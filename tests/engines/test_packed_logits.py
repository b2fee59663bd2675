"""Logits kept in 16 bits: no more is lost than is said, and what is most likely stays so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_plugin.engines.compare_logits import compare
from collab_plugin.engines.packed_logits import DEEPEST, MOST_MOVED, kld_bound, pack_logits, unpack_logits

ROUNDING = 4e-6 * DEEPEST  # of float32, on the way


def _logits(seed: int, spread: float, vocabulary: int = 500, rows: int = 20) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocabulary)) * spread).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.001, 12), st.floats(0, 3))
def test_figures_stay_within_the_bound(seed: int, spread: float, apart: float) -> None:
    original = _logits(seed, spread)
    model = original + _logits(seed + 1, apart)
    targets = np.random.default_rng(seed).integers(0, 500, len(original))
    kept = unpack_logits(pack_logits(original))
    moved = min(float(np.ptp(original, axis=1).max()), DEEPEST) / 65534 / 2 + ROUNDING
    assert moved <= MOST_MOVED + ROUNDING
    near = original.max(axis=1, keepdims=True) - original < DEEPEST
    assert np.abs(kept - original)[near].max() <= moved
    exact, found = (compare(model, each, targets) for each in (original, kept))
    np.testing.assert_array_equal(found[0], exact[0])
    np.testing.assert_array_equal(found[3], exact[3])
    seen = near[np.arange(len(original)), targets]
    assert np.abs(found[1] - exact[1])[seen].max(initial=0) <= 2 * moved
    bounds = [kld_bound(kld, moved) for kld in exact[2]]
    assert (np.abs(found[2] - exact[2]) <= np.array(bounds) + 1e-9).all()


def test_the_usual_error_is_far_below_the_bound() -> None:
    """Errors of many tokens cancel: of a spread like that of language models, a hundred times below."""
    original = _logits(1, 4.0, vocabulary=50_000, rows=32)
    model = original + _logits(2, 0.3, vocabulary=50_000, rows=32)
    targets = np.zeros(32, np.int64)
    exact = compare(model, original, targets)[2].mean()
    found = compare(model, unpack_logits(pack_logits(original)), targets)[2].mean()
    assert abs(found - exact) < 0.01 * kld_bound(float(exact))


@pytest.mark.parametrize("row", [[3, 3, 3, 3], [1, 2.0000001, 2, 1.9999999], [0, -1e30, 5, 5 - 1e-6], [7]])
def test_the_first_of_the_most_likely_stays_first(row: list[float]) -> None:
    logits = np.array([row], np.float32)
    kept = unpack_logits(pack_logits(logits))
    assert kept.argmax() == logits.argmax()
    assert kept.max() == logits.max()
    assert np.isfinite(kept).all()


def test_each_takes_two_bytes() -> None:
    packed = pack_logits(_logits(0, 4.0))
    assert packed.nbytes == 20 * 2 * (500 + 4)
