"""The frontier against brute force and against the allocator."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from test_knapsack import ITEMS, _totals

from collab_plugin.planning.allocators.allocator import Choice, Item
from collab_plugin.planning.allocators.frontier import Frontier, frontier
from collab_plugin.planning.allocators.knapsack import KNAPSACK


def _all(items: list[Item]) -> list[tuple[int, float]]:
    """(bytes, cost) of every combination."""
    picks = itertools.product(*(item.choices for item in items))
    return [(sum(c.nbytes for c in p), sum(c.cost for c in p)) for p in picks]


def _best(everything: list[tuple[int, float]], budget: int) -> float:
    return min((cost for size, cost in everything if size <= budget), default=math.inf)


@settings(max_examples=100, deadline=None)
@given(items=ITEMS)
def test_every_step_is_the_best_of_its_size(items: list[Item]) -> None:
    found, everything = frontier(items), _all(items)
    assert list(found.sizes) == sorted(set(found.sizes))
    assert all(a >= b for a, b in itertools.pairwise(found.costs))
    for size, cost in zip(found.sizes, found.costs, strict=True):
        assert abs(cost - _best(everything, size)) < 1e-9
    assert abs(found.costs[-1] - min(cost for _, cost in everything)) < 1e-9


@settings(max_examples=60, deadline=None)
@given(items=ITEMS)
def test_at_every_budget_within_one_step_of_the_best(items: list[Item]) -> None:
    """The best of all combinations lies between the last step that fits and the first that does not."""
    found, everything = frontier(items), _all(items)
    assert found.cost(found.sizes[0] - 1) == math.inf == _best(everything, found.sizes[0] - 1)
    assert found.bound(found.sizes[0] - 1) == math.inf
    for at, budget in enumerate(found.sizes):
        upper = found.sizes[at + 1] if at + 1 < len(found.sizes) else budget + 50
        below = found.costs[min(at + 1, len(found.costs) - 1)]
        for between in {budget, (budget + upper) // 2, upper - 1}:
            best = _best(everything, between)
            assert found.cost(between) == found.costs[at]
            assert below - 1e-9 <= best <= found.cost(between) + 1e-9
            assert below - 1e-9 <= found.bound(between) <= best + 1e-9


@settings(max_examples=40, deadline=None)
@given(items=ITEMS)
def test_the_allocator_is_never_worse_and_at_a_step_the_same(items: list[Item]) -> None:
    found = frontier(items)
    for at, size in enumerate(found.sizes):
        _, cost = _totals(items, dict(KNAPSACK.solve(items, size, KNAPSACK.values({}))))
        assert abs(cost - found.costs[at]) < 2e-5  # HiGHS stops within 1e-6 of the largest cost
        _, cost = _totals(items, dict(KNAPSACK.solve(items, size + 7, KNAPSACK.values({}))))
        assert cost <= found.cost(size + 7) + 2e-5


def test_what_lies_above_the_hull_is_passed_over() -> None:
    """200 bytes save less a byte than 300 do, so no step ends there; neither does one that costs more."""
    item = Item("a", (Choice("x", 100, 9.0), Choice("y", 200, 8.0), Choice("z", 300, 1.0), Choice("w", 400, 2.0)))
    assert frontier([item]) == Frontier((100, 300), (9.0, 1.0))
    assert frontier([item]).cost(299) == 9.0


def test_steepest_first() -> None:
    a = Item("a", (Choice("x", 10, 5.0), Choice("y", 20, 4.0)))
    b = Item("b", (Choice("x", 10, 5.0), Choice("y", 30, 1.0)))
    assert frontier([a, b]) == Frontier((20, 40, 50), (10.0, 6.0, 5.0))


def test_one_choice_each() -> None:
    assert frontier([Item("a", (Choice("x", 10, 5.0),)), Item("b", (Choice("x", 1, 0.0),))]) == Frontier((11,), (5.0,))
