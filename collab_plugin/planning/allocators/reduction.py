"""Which choices an optimum of the knapsack can have: the solver is asked about these alone.

At the price λ of a byte the best choices without a budget give a bound below every solution (Lagrange); a choice that
costs more than the best one of its item by more than what lies between that bound and a solution at hand is in no
better one (Sinha and Zoltners, 1979, The multiple-choice knapsack problem). λ is the slope of the frontier's step that
no longer fits, where the bound is the linear relaxation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from collab_plugin.planning.allocators.allocator import Choice, Item
from collab_plugin.planning.allocators.frontier import hull

_SLACK = 1e-9
"""Of the largest cost: what rounding may add up to."""


def reduced(items: Sequence[Item], useful: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Those of ``useful`` (indices by item) that a solution within ``budget`` may have that is as good as any.

    The smallest choices together must fit.
    """
    choices = [[item.choices[j] for j in u] for item, u in zip(items, useful, strict=True)]
    price, cost = _greedy(choices, budget)
    at_price = [[c.cost + price * c.nbytes for c in each] for each in choices]
    least = [min(each) for each in at_price]
    room = cost - (sum(least) - price * budget)
    room += _SLACK * max(max(each) for each in at_price)
    return [
        [j for j, value in zip(u, each, strict=True) if value - low <= room]
        for u, each, low in zip(useful, at_price, least, strict=True)
    ]


def _greedy(choices: Sequence[Sequence[Choice]], budget: int) -> tuple[float, float]:
    """The price of a byte, and the cost of a solution: the frontier's steps, steepest first, of those that fit."""
    hulls = [hull(each) for each in choices]
    left = budget - sum(each[0].nbytes for each in hulls)
    cost = sum(each[0].cost for each in hulls)
    steps = sorted(
        ((b.cost - a.cost) / (b.nbytes - a.nbytes), number, place, b.nbytes - a.nbytes, b.cost - a.cost)
        for number, each in enumerate(hulls)
        for place, (a, b) in enumerate(pairwise(each))
    )
    price = 0.0
    stopped: set[int] = set()
    for slope, number, _, more, gain in steps:
        if number in stopped:
            continue
        if more > left:  # and no later step of this item, which begins where this one ends
            price = price or -slope
            stopped.add(number)
            continue
        left, cost = left - more, cost + gain
    return price, cost
