"""What probes say about tensors and prunings that were not probed."""

from __future__ import annotations

import math

import pytest
from small_models.model_bench import Bench

from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.learned_weights import TABLE, table_weights
from collab_plugin.planning.measure.groups import coarse, part_of, split
from collab_plugin.planning.predictor import (
    PIVOT,
    default_prune_cost,
    probed_prune_cost,
    probed_weights,
    together,
)
from collab_plugin.stats.sensitivity import GroupProbe, PruningProbe, Sensitivity

DEFAULT = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}


def _probes(*types: GroupProbe) -> Sensitivity:
    return Sensitivity("model", "stats", ("text.txt",), "", 512, 4, 8, 1020, 86016, "engine", types)


def _type(names: str, error: float, kld: float) -> GroupProbe:
    return GroupProbe(tuple(names), error, kld, 0.001)


def _prune(count: int, used: int, kld: float) -> PruningProbe:
    return PruningProbe("freq-score", count, used, kld, 0.001)


# -- weights


def test_a_group_shares_its_harm_evenly() -> None:
    weights = probed_weights(DEFAULT, _probes(_type("abcd", 0.5, 0.25)))
    assert weights == dict.fromkeys("abcd", 0.5)


@pytest.mark.parametrize("last", [0, 1])
def test_the_smallest_group_wins(last: int) -> None:
    """Whichever was measured first."""
    both = [_type("abcd", 0.5, 0.25), _type("ab", 0.1, 0.3)]
    weights = probed_weights(DEFAULT, _probes(both[last], both[1 - last]))
    assert weights == pytest.approx({"a": 3.0, "b": 3.0, "c": 0.5, "d": 0.5})


def test_tensors_in_no_group_are_scaled_by_the_median() -> None:
    """Probed over default is 3, 3 and 0.5; d was not probed."""
    weights = probed_weights(DEFAULT, _probes(_type("a", 0.1, 0.3), _type("b", 0.1, 0.6), _type("c", 0.1, 0.2)))
    assert weights == pytest.approx({"a": 3.0, "b": 6.0, "c": 2.0, "d": 24.0})


def test_the_level_of_one_group_is_not_taken_for_the_others() -> None:
    """Also when the group has many tensors."""
    weights = probed_weights(DEFAULT, _probes(_type("abc", 0.1, 0.6)))
    assert weights["d"] == DEFAULT["d"]


@pytest.mark.parametrize("probe", [_type("a", 0.0, 0.3), GroupProbe((), 0.5, 0.3, 0), _type("z", 0.5, 0.3)])
def test_probes_that_say_nothing(probe: GroupProbe) -> None:
    """Nothing was lost, no tensor, a tensor that the model does not have."""
    assert probed_weights(DEFAULT, _probes(probe)) == DEFAULT


def test_harm_below_zero_counts_as_none() -> None:
    """A KL divergence of rounding alone can come out as -1e-9."""
    assert probed_weights(DEFAULT, _probes(_type("a", 0.1, -1e-9), _type("b", 0.1, 0.2)))["a"] == 0


def test_errors_together() -> None:
    """Less than their sum where that is much, more where it is little, and in the same order."""
    assert together(0) == 0
    assert together(PIVOT) == pytest.approx(PIVOT)
    assert PIVOT < together(10 * PIVOT) < 10 * PIVOT
    assert together(PIVOT / 10) > PIVOT / 10
    assert together(2e-4) > together(1e-4)


# -- prunings


def _guess(kept: int, used: int) -> float:
    return (16 - kept) / 100 + (4 - used) / 10


def test_measured_points_are_exact() -> None:
    cost = probed_prune_cost(_guess, (_prune(12, 4, 0.07), _prune(8, 4, 0.5), _prune(12, 3, 0.02)), 16)
    assert [cost(12, 4), cost(8, 4), cost(12, 3)] == [0.07, 0.5, 0.02]


def test_the_later_of_two_measurements_counts() -> None:
    assert probed_prune_cost(_guess, (_prune(12, 4, 0.07), _prune(12, 4, 0.09)), 16)(12, 4) == 0.09


def test_between_points_the_scale_is_interpolated() -> None:
    """0.25 dropped is twice the guess, 0.5 dropped eight times; halfway in share, halfway in log."""
    probes = (_prune(8, 4, 8 * _guess(8, 4)), _prune(12, 4, 2 * _guess(12, 4)))
    cost = probed_prune_cost(_guess, probes, 16)
    assert cost(10, 4) == pytest.approx(4 * _guess(10, 4))
    assert cost(11, 4) == pytest.approx(2 * 4 ** (1 / 4) * _guess(11, 4))
    # Beyond the probes the nearest one's scale.
    assert cost(14, 4) == pytest.approx(2 * _guess(14, 4))
    assert cost(6, 4) == pytest.approx(8 * _guess(6, 4))


def test_probes_of_the_same_top_k_come_first() -> None:
    probes = (_prune(12, 4, 2 * _guess(12, 4)), _prune(12, 3, 5 * _guess(12, 3)))
    cost = probed_prune_cost(_guess, probes, 16)
    assert cost(8, 4) == pytest.approx(2 * _guess(8, 4))
    assert cost(8, 3) == pytest.approx(5 * _guess(8, 3))
    assert probed_prune_cost(_guess, probes[:1], 16)(8, 2) == pytest.approx(2 * _guess(8, 2))  # of all, lacking its own


def test_nothing_pruned_costs_nothing() -> None:
    assert probed_prune_cost(_guess, (_prune(12, 4, 0.5),), 16)(16, 4) == 0
    assert probed_prune_cost(_guess, (), 16)(8, 4) == _guess(8, 4)


def test_default_prune_cost_grows_with_what_is_lost(bench: Bench) -> None:
    weights = table_weights(bench.checkpoint, bench.topology)
    t = bench.topology
    lost = {k: dict.fromkeys(t.moe_layers, 1 - k / t.expert_count) for k in range(1, t.expert_count + 1)}
    cost = default_prune_cost(bench.checkpoint, t, weights, lambda kept, used: lost[kept])
    assert cost(16, 4) == 0
    assert cost(12, 4) == pytest.approx(2 * cost(14, 4))  # linear in the lost share
    assert 0 < cost(16, 3) < cost(16, 2)
    assert cost(12, 3) == pytest.approx(cost(12, 4) + cost(16, 3))
    assert cost(16, 2) == pytest.approx(8 * cost(16, 3))  # (1/2)³ of the top-k against (1/4)³
    assert math.isfinite(cost(1, 1))


# -- groups


def test_coarse_groups_hold_every_tensor_once(bench: Bench) -> None:
    tensors = bench.checkpoint.tensors
    groups = coarse(bench.checkpoint)
    names = [n for g in groups for n in g.tensors]
    assert sorted(names) == sorted(n for n, info in tensors.items() if quantizable(info))
    for g in groups:
        assert {part_of(tensors[n]) for n in g.tensors} == {g.part}
        assert len({tensors[n].layer for n in g.tensors}) == 1  # two layers in three bands
    parts = {g.part for g in groups}
    assert {"expert down", "expert gate/up", "attention", "embedding", "output"} <= parts


def test_splitting_ends_at_single_tensors(bench: Bench) -> None:
    queue = coarse(bench.checkpoint)
    whole = {n for g in queue for n in g.tensors}
    single: list[str] = []
    while queue:
        group = queue.pop()
        parts = split(group, bench.checkpoint)
        if not parts:
            single += group.tensors
            continue
        a, b = parts
        assert a.tensors
        assert b.tensors
        assert sorted(a.tensors + b.tensors) == sorted(group.tensors)
        queue += parts
    assert sorted(single) == sorted(whole)


def test_roles_that_are_split_by_side() -> None:
    assert {k.split(" ")[0] for k in TABLE if " " in k} == {Role.EXPERT, Role.SHARED_EXPERT, Role.FFN}
