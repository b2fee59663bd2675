"""The allocator against brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_plugin.planning.allocators.allocator import Allocator, Choice, Item
from collab_plugin.planning.allocators.knapsack import KNAPSACK, UNIFORM

CHOICES = st.builds(
    Choice,
    type=st.just("Q4_K"),
    nbytes=st.integers(1, 400),
    cost=st.floats(0, 10, allow_nan=False).map(lambda c: round(c, 3)),
)
ITEMS = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=5).map(
    lambda rows: [Item(f"t{i}", tuple(sorted(row, key=lambda c: (c.nbytes, c.cost)))) for i, row in enumerate(rows)]
)


def _totals(items: list[Item], picked: dict[str, int]) -> tuple[int, float]:
    chosen = [item.choices[picked[item.name]] for item in items]
    return sum(c.nbytes for c in chosen), sum(c.cost for c in chosen)


def _best(items: list[Item], budget: int) -> float:
    costs = [
        sum(c.cost for c in combination)
        for combination in itertools.product(*(item.choices for item in items))
        if sum(c.nbytes for c in combination) <= budget
    ]
    return min(costs)


@settings(max_examples=60, deadline=None)
@given(items=ITEMS, slack=st.integers(0, 600))
def test_as_good_as_trying_everything(items: list[Item], slack: int) -> None:
    budget = sum(min(c.nbytes for c in item.choices) for item in items) + slack
    picked = dict(KNAPSACK.solve(items, budget, KNAPSACK.values({})))
    size, cost = _totals(items, picked)
    assert size <= budget
    # HiGHS stops within 1e-6 of the largest cost.
    assert cost <= _best(items, budget) + 2e-5


@settings(max_examples=30, deadline=None)
@given(items=ITEMS, slack=st.integers(0, 600))
def test_no_better_type_fits_in_what_is_left(items: list[Item], slack: int) -> None:
    budget = sum(min(c.nbytes for c in item.choices) for item in items) + slack
    picked = dict(KNAPSACK.solve(items, budget, KNAPSACK.values({})))
    size, _ = _totals(items, picked)
    for item in items:
        now = item.choices[picked[item.name]]
        better = [c.nbytes - now.nbytes for c in item.choices if c.cost < now.cost - 1e-5]
        assert all(size + more > budget for more in better)


@pytest.mark.parametrize("budget", [10**12 + 1, 2 * 10**12, 3 * 10**12 - 1])
def test_exact_at_the_size_of_real_models(budget: int) -> None:
    """A budget is held to the byte where the solver's tolerance is megabytes."""
    items = [
        Item(f"t{i}", tuple(Choice(str(j), 10**10 * j + i, 1 / (j * (i + 1))) for j in (1, 2, 3))) for i in range(100)
    ]
    size, _ = _totals(items, dict(KNAPSACK.solve(items, budget + 5000, KNAPSACK.values({}))))
    assert 0.99 * budget < size <= budget + 5000


@pytest.mark.parametrize("allocator", [KNAPSACK, UNIFORM])
def test_too_small_a_budget_is_a_value_error(allocator: Allocator) -> None:
    items = [Item("a", (Choice("Q2_K", 100, 1.0), Choice("Q4_K", 200, 0.0)))]
    with pytest.raises(ValueError, match=r"100 bytes of 99|no single type"):
        allocator.solve(items, 99, allocator.values({}))


def test_same_answer_every_time() -> None:
    items = [Item(f"t{i}", (Choice("Q2_K", 10, 1.0), Choice("Q4_K", 20, 0.5))) for i in range(9)]
    answers = {tuple(sorted(KNAPSACK.solve(items, 130, KNAPSACK.values({})).items())) for _ in range(5)}
    assert len(answers) == 1


def test_uniform_takes_the_largest_type_that_fits_all() -> None:
    items = [
        Item(n, (Choice("Q2_K", 100, 9.0), Choice("Q4_K", 200, 1.0), Choice("Q8_0", 400, 0.0))) for n in ("a", "b")
    ]
    assert dict(UNIFORM.solve(items, 799, UNIFORM.values({}))) == {"a": 1, "b": 1}
    assert dict(UNIFORM.solve(items, 800, UNIFORM.values({}))) == {"a": 2, "b": 2}


def test_uniform_where_a_tensor_lacks_the_type() -> None:
    items = [
        Item("a", (Choice("IQ1_S", 50, 9.0), Choice("Q4_K", 200, 1.0))),
        Item("b", (Choice("Q2_K", 100, 9.0), Choice("Q4_K", 200, 1.0))),
    ]
    assert dict(UNIFORM.solve(items, 399, UNIFORM.values({}))) == {"a": 0, "b": 0}
