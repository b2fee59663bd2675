"""The measures: their definitions on arrays small enough to work out, and their laws on any."""

from __future__ import annotations

import numpy as np
import pytest
from collab_conformance.measures import (
    FirstDifference,
    RoutingAgreement,
    first_difference,
    kld,
    kld_of_top,
    log_softmax,
    nmse,
    routing_agreement,
    same_top1,
    summary,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Ids = NDArray[np.int64]
LOGITS = arrays(np.float64, (4, 9), elements=st.floats(-30, 30))
PAIRS = st.tuples(LOGITS, LOGITS)


@given(arrays(np.float64, 12, elements=st.floats(-10, 10)).filter(lambda a: bool(np.square(a).sum() > 1e-6)),
       st.floats(-3, 3))  # fmt: skip
def test_nmse_of_a_scaled_copy_is_the_square_of_the_excess(values: F64, scale: float) -> None:
    assert nmse(values, scale * values) == pytest.approx((scale - 1) ** 2, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_that_is_not_finite_passes(bad: float) -> None:
    reference, measured = np.ones((2, 3)), np.array([[1.0, bad, 1.0], [1.0, 1.0, 1.0]])
    assert np.isnan(nmse(reference, measured))
    assert np.isnan(kld(reference, measured)).tolist() == [True, False]
    assert np.isnan(summary(kld(reference, measured)).mean)


def test_nmse_of_a_zero_reference() -> None:
    assert nmse(np.zeros(3), np.zeros(3)) == 0
    assert nmse(np.zeros(3), np.ones(3)) == np.inf


def test_kld_of_two_coins() -> None:
    reference, measured = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert kld(reference, measured)[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


@given(PAIRS, arrays(np.float64, (4, 1), elements=st.floats(-50, 50)))
def test_kld_is_not_negative_and_does_not_see_shifts(pair: tuple[F64, F64], shift: F64) -> None:
    a, b = pair
    assert (kld(a, b) >= 0).all()
    assert kld(a, a + shift) == pytest.approx(0, abs=1e-12)
    assert kld(a, b + shift) == pytest.approx(kld(a, b), rel=1e-6, abs=1e-9)


def _top(logits: F64, n: int) -> tuple[Ids, F64]:
    values = log_softmax(logits)
    ids = np.argsort(-values, -1, kind="stable")[:, :n]
    return ids, np.take_along_axis(values, ids, -1)


@given(PAIRS, st.integers(1, 9), st.integers(1, 9))
def test_kld_of_the_top_is_a_lower_bound(pair: tuple[F64, F64], n: int, m: int) -> None:
    a, b = pair
    bound = kld_of_top(*_top(a, n), *_top(b, m))
    assert (bound <= kld(a, b) + 1e-5).all()
    assert (bound >= 0).all()


def test_a_rest_that_is_rounding_does_not_lift_the_bound() -> None:
    """A token of probability 1 - 9e-7: what is left takes 1.2e-5 nats away."""
    a, b = np.zeros((1, 9)), np.zeros((1, 9))
    a[0, 0] = 16
    bound = kld_of_top(*_top(a, 1), *_top(b, 1))
    assert kld(a, b) - 2e-6 < bound < kld(a, b)


@given(PAIRS)
def test_kld_of_the_whole_vocabulary_is_the_divergence(pair: tuple[F64, F64]) -> None:
    a, b = pair
    assert kld_of_top(*_top(a, 9), *_top(b, 9)) == pytest.approx(kld(a, b), rel=1e-6, abs=1e-9)


def test_summary_of_a_hundred_and_one_values() -> None:
    found = summary(np.arange(101.0))
    assert (found.mean, found.p99, found.largest) == (50, 99, 100)


def test_same_top1_counts_positions() -> None:
    assert same_top1(np.array([1, 2, 3, 4]), np.array([1, 2, 9, 4])) == 0.75
    with pytest.raises(ValueError):
        same_top1(np.array([1]), np.array([1, 2]))


def test_routing_by_set_near_tie_downstream_and_wrong() -> None:
    reference = np.array([[[0, 1], [0, 1], [0, 1]], [[2, 3], [2, 3], [2, 3]]])
    measured = np.array([[[1, 0], [0, 5], [0, 5]], [[3, 2], [2, 7], [2, 7]]])
    margins = np.array([[1.0, 1e-6, 1.0], [1.0, 1.0, 1e-6]])
    found = routing_agreement(reference, margins, measured, 1e-4)
    # Token 1 falls to a near-tie, then follows; token 2 is wrong at once, and its near-tie after that no excuse.
    assert found == RoutingAgreement(decisions=6, equal=2, near_ties=1, downstream=1, different=2)
    assert found.share == 0.5


@given(st.data())
def test_routing_counts_add_up_and_a_looser_threshold_excuses_more(data: st.DataObject) -> None:
    shape = (3, 4, 2)
    ids = arrays(np.int64, shape, elements=st.integers(0, 3))
    reference, measured = data.draw(ids), data.draw(ids)
    margins = data.draw(arrays(np.float64, shape[:2], elements=st.floats(0, 1)))
    low, high = sorted(data.draw(st.tuples(st.floats(0, 2), st.floats(0, 2))))
    strict, loose = (routing_agreement(reference, margins, measured, t) for t in (low, high))
    for found in (strict, loose):
        assert found.equal + found.near_ties + found.downstream + found.different == found.decisions == 12
    assert strict.equal == loose.equal
    assert strict.different >= loose.different
    assert routing_agreement(reference, margins, reference[..., ::-1], 0.0).share == 1


def test_texts_part_where_each_knows_the_others_token() -> None:
    reference = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]])
    assert first_difference(reference, reference) == FirstDifference(None, True)
    close = np.array([[1, 9, 9, 9, 9], [7, 6, 8, 9, 10], [0, 0, 0, 0, 0]])
    assert first_difference(reference, close) == FirstDifference(1, True)
    one_sided = np.array([[1, 2, 3, 4, 5], [7, 1, 2, 3, 4], [11, 12, 13, 14, 15]])
    assert first_difference(reference, one_sided) == FirstDifference(1, False)
    assert first_difference(one_sided, reference) == FirstDifference(1, False)
