"""How many experts a token uses after pruning, and what happens to the router weights."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pruning import topology

from collab_plugin.planning.top_k import scaled_top_k, weight_note


@pytest.mark.parametrize(
    ("experts", "used", "kept", "expected"),
    [
        (256, 8, 192, 6),
        (256, 8, 256, 8),
        (256, 8, 128, 4),
        (256, 8, 208, 7),  # 6.5 goes up
        (256, 8, 207, 6),
        (128, 8, 1, 1),  # never none
        (32, 4, 24, 3),
        (8, 2, 6, 2),  # 1.5 goes up
    ],
)
def test_scaled_with_the_kept_share(experts: int, used: int, kept: int, expected: int) -> None:
    assert scaled_top_k(topology(experts, used), kept) == expected


@given(experts=st.integers(2, 512), data=st.data())
def test_bounds_of_the_scaled_k(experts: int, data: st.DataObject) -> None:
    used = data.draw(st.integers(1, experts))
    kept = data.draw(st.integers(1, experts))
    k = scaled_top_k(topology(experts, used), kept)
    assert 1 <= k <= min(used, kept)
    assert k == 1 or abs(k - used * kept / experts) <= 0.5


def test_routers_that_renormalise_need_no_word() -> None:
    assert weight_note(topology(), 4, 1) is None


def test_nothing_pruned_needs_no_word() -> None:
    t = dataclasses.replace(topology(), renormalises=False)
    assert weight_note(t, 8, 2) is None


def test_softmax_over_survivors_gives_more_weight() -> None:
    t = dataclasses.replace(topology(), renormalises=False, gating="softmax")
    note = weight_note(t, 6, 2)
    assert note is not None
    assert "more weight" in note


@pytest.mark.parametrize(("gating", "kept"), [("sigmoid", 6), ("softmax", 8)])
def test_fewer_experts_a_token_give_less_output(gating: str, kept: int) -> None:
    t = dataclasses.replace(topology(), renormalises=False, gating=gating)
    note = weight_note(t, kept, 1)
    assert note is not None
    assert "smaller" in note
