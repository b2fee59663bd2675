"""Experts that leave memory: those that the policy thinks worth least, and no more than there must."""

from __future__ import annotations

import numpy as np
import pytest
from collab_llamacpp.native.kept_pages import KeptPages
from hypothesis import given
from hypothesis import strategies as st

from collab_plugin.placement.builtin_policies import LFU_STEADY, LRU, MOST_SELECTED, POLICIES

LAYERS, EXPERTS, SIZE = (1, 2, 5), 6, 10
DYNAMIC = [policy for policy in POLICIES if policy.dynamic is not None]


def kept(policy: object = LRU, room: int = 60) -> KeptPages:
    return KeptPages(policy, dict.fromkeys(LAYERS, SIZE), EXPERTS, room)  # type: ignore[arg-type]


def test_nothing_leaves_while_there_is_room() -> None:
    pages = kept(room=3 * 2 * SIZE)
    assert [pages.leaving(layer, [0, 1]) for layer in LAYERS * 2] == [[]] * 6


def test_the_least_recently_used_leaves_whatever_its_layer() -> None:
    pages = kept(room=4 * SIZE)
    for _ in range(2):
        assert [pages.leaving(layer, [0, 1]) for layer in (1, 2)] == [[], []]
    assert pages.leaving(1, [0]) == pages.leaving(2, [0]) == []
    assert pages.leaving(1, [0, 3]) in ([(1, 1)], [(2, 1)]), "not used in the pass before"


def test_an_expert_used_once_goes_before_those_used_often() -> None:
    pages = kept(LFU_STEADY, room=4 * SIZE)
    for _ in range(50):
        for layer in (1, 2):
            assert pages.leaving(layer, [0, 1]) == []
    assert pages.leaving(1, [0, 5]) in ([(1, 1)], [(2, 0)], [(2, 1)]), "one leaves, none of those in use"
    assert pages.leaving(2, [0, 1])[-1:] in ([(1, 5)], []), "then the one that was used once"


def test_what_a_layer_uses_now_stays_even_where_there_is_no_room() -> None:
    pages = kept(room=SIZE)
    assert pages.leaving(1, [0, 1, 2]) == []
    assert sorted(pages.leaving(2, [3])) == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("policy", DYNAMIC, ids=lambda policy: policy.name)
@given(data=st.data())
def test_what_stays_fits_and_what_leaves_was_there(policy: object, data: st.DataObject) -> None:
    sizes = {1: 10, 2: 25, 5: 10}
    room = data.draw(st.integers(50, 200))
    pages = KeptPages(policy, sizes, EXPERTS, room)  # type: ignore[arg-type]
    there: set[tuple[int, int]] = set()
    for _ in range(8):
        for layer in sizes:
            chosen = data.draw(st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=2, unique=True))
            now = {(layer, expert) for expert in chosen}
            gone = pages.leaving(layer, chosen)
            assert len(set(gone)) == len(gone) and set(gone) <= there - now
            there = there - set(gone) | now
            held = sum(sizes[layer] for layer, _ in there)
            assert held <= room
            assert not gone or held > room - 2 * max(sizes.values()), "no more leaves than must"


def test_a_policy_that_moves_nothing_is_none_for_pages() -> None:
    with pytest.raises(ValueError, match="most-selected"):
        kept(MOST_SELECTED)


def test_choosing_what_leaves_takes_little_of_a_token_of_a_large_model() -> None:
    """58 layers of 256 experts: what is looked at is bounded by counting, not by time."""
    pages = KeptPages(LFU_STEADY, dict.fromkeys(range(58), SIZE), 256, 58 * 64 * SIZE)
    rng = np.random.default_rng(0)
    gone = 0
    for _ in range(20):
        for layer in range(58):
            gone += len(pages.leaving(layer, rng.choice(256, 8, replace=False).tolist()))
    assert 0 < gone < 20 * 58 * 8
