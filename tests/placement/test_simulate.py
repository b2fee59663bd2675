"""The simulator against a plain one, and against what must hold of any policy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_plugin.errors import CollabError
from collab_plugin.placement.builtin_policies import (
    FRONT_LOADING,
    LFRU,
    LFU_DECAY,
    LFU_STEADY,
    LRU,
    LRU_WARM,
    MOST_SELECTED,
    POLICIES,
    RANDOM,
    UNIFORM,
)
from collab_plugin.placement.policy import LayerUse, PlacementPolicy, rooms_of
from collab_plugin.placement.simulate import best_possible, replay, uses_of
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import LayerRouting

EXPERTS, USED, LAYERS = 6, 2, 2
step = st.lists(st.integers(0, EXPERTS - 1), min_size=USED, max_size=USED, unique=True)
traces = st.lists(st.lists(step, min_size=LAYERS, max_size=LAYERS), min_size=1, max_size=12).map(
    lambda tokens: RoutingTrace(np.array(tokens, np.int16), (3, 5), EXPERTS)
)


def routing(seed: int = 0) -> dict[int, LayerRouting]:
    counts = np.random.default_rng(seed).integers(1, 50, (LAYERS, EXPERTS))
    return {layer: LayerRouting(int(count.sum()) // USED, count) for layer, count in zip((3, 5), counts, strict=True)}


def plain(trace: RoutingTrace, capacity: int, kind: str) -> int:
    """Misses of one policy, with sets and sorting; every layer starts empty."""
    missed = 0
    for layer in range(LAYERS):
        resident: set[int] = set()
        worth = np.zeros(EXPERTS)
        for at, ids in enumerate(trace.chosen[:, layer].tolist()):
            missed += len(set(ids) - resident)
            worth = worth * 0.95 if kind == "lfu-decay" else worth
            for expert in ids:
                worth[expert] = at + 1 if kind == "lru" else worth[expert] + 1
            others = sorted(resident - set(ids), key=lambda e: (-worth[e], e))
            resident = {*ids, *others[: capacity - len(ids)]}
    return missed


def least(trace: RoutingTrace, capacity: int) -> int:
    """The fewest misses that any choice of what stays could have, by trying all."""
    total = 0
    for layer in range(LAYERS):
        costs: dict[frozenset[int], int] = {frozenset(): 0}
        for ids in trace.chosen[:, layer].tolist():
            following: dict[frozenset[int], int] = {}
            for resident, cost in costs.items():
                now = cost + len(set(ids) - resident)
                others = sorted(resident - set(ids))
                spare = min(capacity - len(ids), len(others))
                for stay in itertools.combinations(others, spare):
                    key = frozenset({*ids, *stay})
                    following[key] = min(now, following.get(key, now))
            costs = following
        total += min(costs.values())
    return total


@settings(max_examples=60, deadline=None)
@given(traces)
def test_dynamic_policies_do_what_a_plain_simulator_does(trace: RoutingTrace) -> None:
    unknown = uses_of(trace.layers, EXPERTS, None)
    rooms = [capacity * LAYERS for capacity in (2, 3, 5, 6)]
    for policy, kind in ((LRU, "lru"), (LFU_DECAY, "lfu-decay")):
        found = [result.misses for result in replay(trace, policy, rooms, unknown)]
        assert found == [plain(trace, room // LAYERS, kind) for room in rooms]
    assert [result.misses for result in best_possible(trace, rooms)] == [least(trace, r // LAYERS) for r in rooms]


@settings(max_examples=30, deadline=None)
@given(traces)
def test_all_experts_in_memory_miss_nothing_but_their_first_use(trace: RoutingTrace) -> None:
    uses = uses_of(trace.layers, EXPERTS, routing())
    for policy in POLICIES:
        (result,) = replay(trace, policy, [LAYERS * EXPERTS], uses)
        first = sum(len(np.unique(trace.chosen[:, layer])) for layer in range(LAYERS))
        assert result.misses == (first if policy is LRU else 0), policy.name
        assert result.requests == trace.tokens * LAYERS * USED


def test_static_policies_look_up_a_fixed_set() -> None:
    trace = RoutingTrace(np.array([[[0, 1], [2, 3]], [[0, 5], [2, 4]]], np.int16), (3, 5), EXPERTS)
    counts = np.array([[9, 8, 1, 1, 1, 1], [1, 1, 7, 6, 1, 1]])
    seen = {layer: LayerRouting(10, count) for layer, count in zip((3, 5), counts, strict=True)}
    (result,) = replay(trace, MOST_SELECTED, [4], uses_of((3, 5), EXPERTS, seen))
    assert result.missed.tolist() == [[0, 0], [1, 1]]
    assert (result.moved, result.hit_rate) == (0, 0.75)


def test_rooms() -> None:
    counts = np.array([[9, 8, 7, 6, 1, 1], [9, 1, 1, 1, 1, 1]])
    seen = {layer: LayerRouting(10, count) for layer, count in zip((3, 5), counts, strict=True)}
    uses, unknown = uses_of((3, 5), EXPERTS, seen), uses_of((3, 5), EXPERTS, None)
    assert rooms_of(MOST_SELECTED, uses, 5) == [4, 1], "by heat, over layers"
    assert rooms_of(MOST_SELECTED, unknown, 5) == [3, 2], "alike where nothing is known"
    assert rooms_of(FRONT_LOADING, uses, 8) == [6, 2]
    assert rooms_of(UNIFORM, uses, 8) == rooms_of(RANDOM, uses, 8) == [4, 4]
    assert rooms_of(LRU, uses, 99) == [6, 6]
    greedy = PlacementPolicy("greedy", "", lambda use, number: range(number), rooms=lambda uses, total: [total, total])
    with pytest.raises(CollabError, match="'greedy' gives"):
        rooms_of(greedy, uses, 5)


def test_statistics_spare_the_first_misses() -> None:
    """A warm start and a start from counts hit at once what calibration saw most."""
    trace = RoutingTrace(np.array([[[0, 1], [0, 1]]], np.int16), (3, 5), EXPERTS)
    seen = {layer: LayerRouting(10, np.array([9, 8, 1, 1, 1, 1])) for layer in (3, 5)}
    uses = uses_of((3, 5), EXPERTS, seen)
    assert [replay(trace, policy, [6], uses)[0].misses for policy in (LRU, LRU_WARM, LFU_DECAY, LFRU)] == [4, 0, 0, 0]


def test_what_changes_with_the_text_is_followed_only_by_dynamic_policies() -> None:
    random = np.random.default_rng(0)
    first = np.stack([random.permutation(3)[:2] for _ in range(200)])
    ids = np.concatenate([first, first + 3]).astype(np.int16)[:, None]
    trace = RoutingTrace(ids, (0,), EXPERTS)
    uses = [LayerUse(0, EXPERTS, LayerRouting(200, np.bincount(first.ravel(), minlength=EXPERTS)))]
    assert replay(trace, MOST_SELECTED, [3], uses)[0].hit_rate == 0.5
    for policy in (LRU_WARM, LFU_DECAY, LFRU, LFU_STEADY):
        assert replay(trace, policy, [3], uses)[0].hit_rate > 0.9, policy.name


@pytest.mark.parametrize("room", [4, 8, 16, 24])
def test_the_steady_policy_loses_nothing_where_choices_do_not_cluster(room: int) -> None:
    """Draws by fixed shares, calibrated on others of them: there is nothing to adapt to. And where each is made again
    with a probability of a half, it has what a recent past gives, but for a room of one token's choices alone."""
    random = np.random.default_rng(1)
    logits = 1.2 * random.standard_normal(32)

    def drawn(tokens: int, again: float) -> np.ndarray:
        keys = logits + random.gumbel(size=(tokens, 32))
        for at in range(1, tokens):
            before = np.argsort(-keys[at - 1])[:4]
            keys[at, before[random.random(4) < again]] = 99.0
        return np.argsort(-keys, axis=1)[:, :4].astype(np.int16)

    seen = LayerRouting(1000, np.bincount(drawn(1000, 0).ravel(), minlength=32))
    uses = [LayerUse(0, 32, seen)]
    hits = {}
    for again in (0.0, 0.5):
        trace = RoutingTrace(drawn(2000, again)[:, None], (0,), 32)
        for policy in (MOST_SELECTED, LRU_WARM, LFU_STEADY):
            hits[policy.name, again] = replay(trace, policy, [room], uses)[0].hit_rate
    assert hits["lfu-steady", 0.0] > hits["most-selected", 0.0] - 0.005
    assert hits["lfu-steady", 0.5] > hits["lru-warm", 0.5] - (0.05 if room == 4 else 0.01)
    assert hits["lfu-steady", 0.5] > hits["most-selected", 0.5] + 0.01


def test_a_selective_policy_brings_in_only_what_is_worth_more() -> None:
    """One hot pair and a stream of experts that are used once: they pass by."""
    ids = np.array([[0, 1] if at % 2 else [2 + at // 2 % 4, 0] for at in range(400)], np.int16)[:, None]
    trace = RoutingTrace(ids, (0,), EXPERTS)
    counts = np.bincount(ids.ravel(), minlength=EXPERTS)
    uses = [LayerUse(0, EXPERTS, LayerRouting(400, counts))]
    (steady,), (static,) = (replay(trace, policy, [2], uses) for policy in (LFU_STEADY, MOST_SELECTED))
    assert steady.moved == 0
    assert steady.misses == static.misses == 200
    (alone,) = replay(trace, LFU_STEADY, [1], uses)
    assert (alone.misses, alone.moved) == (400, 0), "less room than a token uses"


def test_too_little_room_for_what_a_token_uses() -> None:
    trace = RoutingTrace(np.zeros((1, LAYERS, USED), np.int16), (3, 5), EXPERTS)
    with pytest.raises(CollabError, match="needs room for the 2 that a token uses"):
        replay(trace, LRU, [3], uses_of((3, 5), EXPERTS, None))


def test_choices_that_are_not_there_are_no_requests() -> None:
    chosen = np.array([[[0, -1], [-1, -1]], [[0, 1], [2, 3]]], np.int16)
    trace = RoutingTrace(chosen, (3, 5), EXPERTS)
    for policy in POLICIES:
        (result,) = replay(trace, policy, [12], uses_of((3, 5), EXPERTS, None))
        assert result.requests == 5
        assert result.missed[0].tolist() in ([0, 0], [1, 0])
