"""Which experts give way, what a miss costs, and how counts get from workers to metrics; needs no vLLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collab_vllm.experts.host.tile_cost import tile_cost
from collab_vllm.experts.tiering import tier_counts
from collab_vllm.experts.tiering.miss_cost import MissCost, measured_cost
from collab_vllm.experts.tiering.resident_set import ResidentSet
from collab_vllm.experts.tiering.tier_counts import FOLDER, TierCounts, counted

from collab_plugin.placement.builtin_policies import LRU_WARM
from collab_plugin.placement.policy import Residency
from collab_plugin.placement.residencies import DecayedCount, LastUsed
from collab_plugin.placement.simulate import replay, uses_of
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import LayerRouting

EXPERTS = 8


def mask(*chosen: int) -> np.ndarray:
    return np.isin(range(EXPERTS), chosen)


def lru(start: tuple[int, ...] = (0, 1, 2), room: int = 3) -> ResidentSet:
    return ResidentSet(EXPERTS, room, start, LastUsed(np.zeros((1, EXPERTS)), {}))


def step(held: ResidentSet, *chosen: int) -> list[tuple[int, int]]:
    held.saw(mask(*chosen))
    return held.bring_in([e for e in chosen if held.slot[e] < 0], mask(*chosen))


def test_the_least_worth_leaves_and_its_slot_is_taken() -> None:
    held = lru()
    step(held, 0, 2)
    assert step(held, 5) == [(5, 1)]
    assert held.experts == [0, 2, 5]
    assert list(held.slot[[0, 1, 2, 5]]) == [0, -1, 2, 1]


def test_of_equals_the_highest_number_leaves_and_none_that_the_step_uses() -> None:
    assert step(lru(), 2, 6, 7) == [(6, 1), (7, 0)]
    assert len(step(lru(), 3, 4, 5, 6)) == 3, "there is room for three"
    assert lru(start=(4,)).bring_in([1, 2, 3], mask(1, 2, 3)) == [(1, 1), (2, 2), (3, 0)], "free slots first"


def test_rearranging_takes_what_is_worth_more_up_to_a_limit() -> None:
    held = ResidentSet(EXPERTS, 2, (0, 1), DecayedCount(np.zeros((1, EXPERTS)), {"decay": 0.9}))
    for _ in range(3):
        held.saw(mask(4, 5, 6))
    held.saw(mask(5))
    assert held.rearrange(1) == [(5, 1)]
    assert held.rearrange(8) == [(4, 0)]
    assert held.rearrange(8) == []
    assert held.experts == [4, 5]


def test_every_miss_copied_is_what_the_simulator_replays() -> None:
    """One token a step, random choices with a skew: the same misses."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, EXPERTS + 1)
    chosen = np.stack([generator.choice(EXPERTS, (1, 2), replace=False, p=share / share.sum()) for _ in range(400)])
    count = np.bincount(chosen.reshape(-1), minlength=EXPERTS)
    trace = RoutingTrace(chosen.astype(np.int16), (0,), EXPERTS)
    uses = uses_of((0,), EXPERTS, {0: LayerRouting(400, count)})
    simulated = replay(trace, LRU_WARM, [3], uses)[0]
    start = sorted(np.argsort(-count, kind="stable")[:3])
    held = ResidentSet(EXPERTS, 3, start, LastUsed(uses[0].heat[None] * 2, {}))
    misses = 0
    for (pair,) in chosen:
        misses += int((held.slot[pair] < 0).sum())
        step(held, *map(int, pair))
    assert misses == simulated.misses


def test_a_static_set_never_moves() -> None:
    held = ResidentSet(EXPERTS, 2, (0, 1), None)
    assert step(held, 4) == held.rearrange(2) == []


def test_a_plugin_may_judge() -> None:
    class Newest(Residency):
        worth = np.arange(EXPERTS, dtype=np.float64)[None]

        def saw(self, chosen: np.ndarray) -> None: ...

    assert ResidentSet(EXPERTS, 2, (6, 1), Newest()).rearrange(8) == [(7, 1)]


def test_many_rows_are_worth_a_copy_and_few_are_not() -> None:
    cost = MissCost((1, 16), copy=10.0, host=(1.0, 16.0), fast=(0.1, 0.4))
    assert list(cost.copies(np.array([1, 8, 12, 100]))) == [False, False, True, True]
    never = MissCost((1, 16), copy=1.0, host=(1.0, 1.0), fast=(1.0, 1.0))
    assert not never.copies(np.array([1, 1000])).any()


def test_costs_are_measured_and_the_device_is_waited_for() -> None:
    done: list[str] = []
    cost = measured_cost(
        (1, 16),
        lambda: done.append("copy"),
        lambda rows: done.append(f"host {rows}"),
        lambda rows: done.append(f"fast {rows}"),
        lambda: done.append("wait"),
    )
    assert set(done) == {"copy", "host 1", "host 16", "fast 1", "fast 16", "wait"}
    assert min(cost.copy, *cost.host, *cost.fast) >= 0
    assert done[1::2] == ["wait"] * (len(done) // 2)


def test_counts_of_workers_are_added_by_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for process, rank in ((11, 0), (12, 1), (13, 1)):
        monkeypatch.setattr(tier_counts.os, "getpid", lambda process=process: process)
        counts = TierCounts(rank)
        counts.add(hits=5, bytes=2**40)
        counts.add(hits=rank)
        assert counts.so_far()["hits"] == 5 + rank
    assert {rank: (c["hits"], c["bytes"]) for rank, c in counted()} == {0: (5, 2**40), 1: (12, 2**41)}


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    TierCounts(0).add(hits=1)
    assert list(counted()) == [] and list(tmp_path.iterdir()) == []


def test_a_new_folder_is_made_for_each_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, "")
    tier_counts.new_folder()
    TierCounts(0).add(moves=3)
    assert [c["moves"] for _, c in counted()] == [3]
    tier_counts.new_folder()
    assert list(counted()) == []


def test_a_selective_policy_lets_in_only_what_is_worth_more() -> None:
    judge = DecayedCount(np.array([[3.0, 2.0, *(EXPERTS - 2) * [0.0]]]), {"decay": 0.5})
    held = ResidentSet(EXPERTS, 2, (0, 1), judge, selective=True)
    assert held.bring_in([2], mask(2)) == [], "worth nothing yet"
    for _ in range(5):
        held.saw(mask(2))
    assert held.bring_in([2, 3], mask(1, 2, 3)) == [(2, 0)], "for one that the step does not use; 3 is worth nothing"


def test_tokens_are_filled_up_where_a_tile_takes_less() -> None:
    """A call takes 100 and a token 100 more; a tile takes as long as 3.2 tokens."""
    rows = np.arange(10)
    cost = tile_cost(200.0, 800.0, 420.0)
    assert (cost.token, cost.tile, cost.sorting) == (100.0, 320.0, 100.0)
    assert np.flatnonzero(cost.filled_up(rows)).tolist() == [4, 5, 6, 7], "8 and more are tiles by themselves"
    assert cost.gain(np.array([1, 2, 3])) == -100.0, "sorting costs, and there is nothing to gain"
    assert cost.gain(np.array([5, 9, 1])) == 500 - 320 + 900 - 640 - 100
    none = tile_cost(200.0, 800.0, 900.0)  # a type without tiles
    assert not none.filled_up(rows).any() and none.gain(rows) < 0
