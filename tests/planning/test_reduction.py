"""Choices that no optimum has are not asked about, and those that one has are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_plugin.planning.allocators.allocator import Choice, Item
from collab_plugin.planning.allocators.reduction import reduced

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True).map(sorted)
COSTS = st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.25, 0.5, 1.0, 3.0, 7.0]), min_size=4, max_size=4, unique=True)


def _items(rows: list[tuple[list[int], list[float]]]) -> list[Item]:
    """Choices of rising bytes and falling cost, as the allocator hands on what is of use."""
    return [
        Item(f"t{i}", tuple(Choice("Q4_K", *pair) for pair in zip(sizes, sorted(costs, reverse=True), strict=False)))
        for i, (sizes, costs) in enumerate(rows)
    ]


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(SIZES, COSTS), min_size=1, max_size=5), slack=st.integers(0, 200))
def test_an_optimum_is_left(rows: list[tuple[list[int], list[float]]], slack: int) -> None:
    items = _items(rows)
    useful = [list(range(len(item.choices))) for item in items]
    budget = sum(item.choices[0].nbytes for item in items) + slack

    def best(asked: list[list[int]]) -> float:
        made = itertools.product(*([item.choices[j] for j in u] for item, u in zip(items, asked, strict=True)))
        return min(sum(c.cost for c in choices) for choices in made if sum(c.nbytes for c in choices) <= budget)

    assert best(reduced(items, useful, budget)) == pytest.approx(best(useful), abs=1e-12)


def test_few_are_left_of_many() -> None:
    """800 tensors of 14 types, as DeepSeek-V3 has."""
    rng = np.random.default_rng(0)
    sizes = np.cumsum(rng.integers(10**6, 10**8, (800, 14)), axis=1)
    costs = np.sort(rng.random((800, 14)), axis=1)[:, ::-1]
    rows = zip(sizes.tolist(), costs.tolist(), strict=True)
    items = [Item(f"t{i}", tuple(map(Choice, ["Q4_K"] * 14, *pair))) for i, pair in enumerate(rows)]
    asked = reduced(items, [list(range(14))] * 800, int(sizes[:, 5].sum()))
    assert all(asked)
    assert sum(map(len, asked)) < 1000


def test_a_budget_without_end() -> None:
    """The largest of each alone, whatever rounding leaves of the sum."""
    items = _items([([10, 20, 30], [0.3, 0.1, 1e-18, 0.0]), ([7, 9], [1e-9, 1e-18, 0.7, 0.2])])
    assert reduced(items, [[0, 1, 2], [0, 1]], 10**12) == [[2], [1]]
