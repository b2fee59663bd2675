"""Errors of all tensors at once: how large each is, and what probes of them say of a plan."""

from __future__ import annotations

from itertools import pairwise

import pytest
from small_models.model_bench import Bench

from collab_plugin.planning.measure.groups import coarse
from collab_plugin.planning.measure.together import LEVELS, MOST_ERROR, together_at_levels
from collab_plugin.planning.predictor import POWER, REAL_ERRORS, probed_together, together
from collab_plugin.stats.sensitivity import GroupProbe, TogetherProbe


def _probes(bench: Bench, kld: float) -> list[GroupProbe]:
    """A probe of every coarse group; the groups differ."""
    groups = coarse(bench.checkpoint)
    return [GroupProbe(g.tensors, 0.03 * len(g.tensors), kld * (i + 1), 0.0) for i, g in enumerate(groups)]


def test_costs_add_up_to_the_levels_and_every_weight_costs_the_same(bench: Bench) -> None:
    probes = _probes(bench, 0.002)
    found = together_at_levels(bench.checkpoint, probes)
    weights = {n: p.kld / p.error for p in probes for n in p.tensors}
    assert len(found) == len(LEVELS)
    for level, each in zip(LEVELS, found, strict=True):
        assert sum(weights[n] * e for n, e in each.errors.items()) == pytest.approx(level)
        assert set(each.errors) == set(weights)
        assert max(each.errors.values()) <= MOST_ERROR
        sizes = {n: bench.checkpoint.tensors[n].n_elements for n in weights}
        free = [n for n, e in each.errors.items() if e < 0.999 * MOST_ERROR]
        costs = [weights[n] * each.errors[n] / sizes[n] for n in free]
        assert costs == pytest.approx([costs[0]] * len(costs))
    assert all(a.errors[n] <= b.errors[n] for a, b in pairwise(found) for n in weights)


def test_levels_that_no_errors_reach_are_left_out(bench: Bench) -> None:
    probes = _probes(bench, 1e-5)
    most = MOST_ERROR * sum(p.kld / 0.03 for p in probes)
    assert LEVELS[0] < most < LEVELS[-1]
    assert len(together_at_levels(bench.checkpoint, probes)) == sum(level < most for level in LEVELS)


def test_none_before_every_part_was_probed(bench: Bench) -> None:
    assert together_at_levels(bench.checkpoint, _probes(bench, 0.002)[1:]) == []


def test_tensors_that_cost_nothing_have_the_largest_error(bench: Bench) -> None:
    first, *others = _probes(bench, 0.002)
    free = GroupProbe(first.tensors, first.error, -1e-9, 0.0)
    for each in together_at_levels(bench.checkpoint, [free, *others]):
        assert {each.errors[n] for n in first.tensors} == {MOST_ERROR}


# -- what a plan makes of them

WEIGHTS = {"a": 1.0, "b": 2.0}


def _probe(a: float, b: float, kld: float) -> TogetherProbe:
    return TogetherProbe({"a": a, "b": b}, {}, kld, 0.0)


def test_measured_levels_count_and_logarithms_are_linear_between_them() -> None:
    cost = probed_together(WEIGHTS, [_probe(0.02, 0.04, 0.2), _probe(0.004, 0.003, 0.02)])
    expected = {0.1: 0.2, 0.01: 0.02, (0.1 * 0.01) ** 0.5: (0.2 * 0.02) ** 0.5}
    expected |= {0.2: 0.2 * 2**POWER, 0.001: 0.02 * 10**-POWER}
    assert {x: cost(x) for x in expected} == pytest.approx({x: REAL_ERRORS * y for x, y in expected.items()})
    assert cost(0.0) == 0


def test_more_errors_never_cost_less() -> None:
    """Also where few tokens made a larger error look smaller."""
    cost = probed_together(WEIGHTS, [_probe(0.01, 0.0, 0.03), _probe(0.02, 0.0, 0.02), _probe(0.1, 0.0, 0.2)])
    found = [cost(10 ** (n / 10 - 4)) for n in range(40)]
    assert found == sorted(found)


@pytest.mark.parametrize("probes", [[], [_probe(0.0, 0.0, 0.1)], [_probe(0.1, 0.1, -1e-9)]])
def test_without_a_probe_that_says_something_the_law_counts(probes: list[TogetherProbe]) -> None:
    assert probed_together(WEIGHTS, probes) is together
