"""The least cost at every budget at once: what the search weighs before the allocator is asked.

Each item's choices are cut to their lower convex hull; the hull's steps of all items, steepest first,
are the optimum of the knapsack's linear relaxation. At the byte counts where a step ends it is a whole
choice, so exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from collab_plugin.planning.allocators.allocator import Choice, Item


@dataclass(frozen=True)
class Frontier:
    """``sizes`` ascending and the least ``costs`` there."""

    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    def cost(self, budget: int) -> float:
        """Cost of the last whole step within ``budget``; infinite when even the smallest does not fit."""
        at = bisect_right(self.sizes, budget) - 1
        return self.costs[at] if at >= 0 else float("inf")

    def bound(self, budget: int) -> float:
        """What no choice within ``budget`` costs less than: the optimum of the linear relaxation."""
        at = bisect_right(self.sizes, budget) - 1
        if at < 0:
            return float("inf")
        if at + 1 == len(self.sizes):
            return self.costs[at]
        share = (budget - self.sizes[at]) / (self.sizes[at + 1] - self.sizes[at])
        return self.costs[at] + share * (self.costs[at + 1] - self.costs[at])


def frontier(items: Sequence[Item]) -> Frontier:
    """The frontier of ``items``; see the module's docstring."""
    size = cost = 0.0
    steps: list[tuple[float, float, float]] = []
    for item in items:
        cut = hull(item.choices)
        size += cut[0].nbytes
        cost += cut[0].cost
        for a, b in pairwise(cut):
            steps.append(((b.cost - a.cost) / (b.nbytes - a.nbytes), b.nbytes - a.nbytes, b.cost - a.cost))
    sizes, costs = [int(size)], [cost]
    for _, more, gain in sorted(steps):
        size, cost = size + more, cost + gain
        sizes.append(int(size))
        costs.append(max(cost, 0.0))
    return Frontier(tuple(sizes), tuple(costs))


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower convex hull of (bytes, cost), cheapest bytes first, cost falling."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.nbytes, c.cost)):
        if found and choice.cost >= found[-1].cost:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-2], choice):
            found.pop()
        found.append(choice)
    return found


def _slope(a: Choice, b: Choice) -> float:
    return (b.cost - a.cost) / (b.nbytes - a.nbytes)
