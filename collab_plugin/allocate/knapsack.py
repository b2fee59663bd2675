"""Bit allocation as a multiple-choice knapsack, solved by HiGHS (scipy.optimize.milp)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, vstack

from collab_plugin.allocate.allocator import Allocator, Item

RELATIVE_GAP = 1e-5
"""How far from the proven optimum the search may stop; measured errors are good to two digits."""
NODE_LIMIT = 2000
"""Bounds the search by work, not by time: a time limit would make plans depend on the machine's load."""

Picks = dict[str, int]


def solve(items: Sequence[Item], budget: int) -> Mapping[str, int]:
    """Return the chosen index by item name with least total cost within ``budget`` bytes.

    A greedy walk along the items' lower convex hulls gives a first solution, HiGHS a better one, and
    bytes left over raise whatever still fits. The best of the two by exact arithmetic is returned, so
    the answer holds whatever the solver's tolerances. Equal costs: fewer bytes, then HiGHS's own
    order over items sorted by name, which is deterministic.
    """
    if not items:
        return {}
    ordered = sorted(items, key=lambda item: item.name)
    useful = {item.name: undominated(item) for item in ordered}
    least = sum(min(c.nbytes for c in item.choices) for item in ordered)
    if least > budget:
        raise ValueError(f"the smallest choices need {least} bytes, the budget is {budget}")
    candidates = [_greedy(ordered, useful, budget)]
    solved = _highs(ordered, useful, budget)
    if solved is not None and total_bytes(ordered, solved) <= budget:
        candidates.append(solved)
    filled = [_fill(ordered, useful, picks, budget) for picks in candidates]
    return min(filled, key=lambda picks: (total_cost(ordered, picks), total_bytes(ordered, picks)))


def undominated(item: Item) -> tuple[int, ...]:
    """Return indices of choices that no other beats in both bytes and cost, ascending in bytes."""
    order = sorted(range(len(item.choices)), key=lambda i: (item.choices[i].nbytes, item.choices[i].cost, i))
    front: list[int] = []
    for index in order:
        if not front or item.choices[index].cost < item.choices[front[-1]].cost:
            front.append(index)
    return tuple(front)


def total_bytes(items: Sequence[Item], picks: Mapping[str, int]) -> int:
    """Return the exact bytes of a choice."""
    return sum(item.choices[picks[item.name]].nbytes for item in items)


def total_cost(items: Sequence[Item], picks: Mapping[str, int]) -> float:
    """Return the cost of a choice."""
    return float(sum(item.choices[picks[item.name]].cost for item in items))


def _greedy(items: Sequence[Item], useful: Mapping[str, tuple[int, ...]], budget: int) -> Picks:
    picks = {item.name: useful[item.name][0] for item in items}
    left = budget - total_bytes(items, picks)
    steps = sorted(
        (-gain, position, order, index, extra)
        for position, item in enumerate(items)
        for order, (gain, index, extra) in enumerate(_hull_steps(item, useful[item.name]))
    )
    blocked: set[int] = set()
    for _, position, _, index, extra in steps:
        if position in blocked:
            continue
        if extra <= left:
            picks[items[position].name] = index
            left -= extra
        else:
            blocked.add(position)
    return picks


def _hull_steps(item: Item, front: Sequence[int]) -> list[tuple[float, int, int]]:
    """Return (cost saved a byte, index reached, bytes added) along the lower convex hull."""
    steps: list[tuple[float, int, int]] = []
    here = 0
    while here < len(front) - 1:
        base = item.choices[front[here]]
        slopes = [
            (base.cost - item.choices[i].cost) / (item.choices[i].nbytes - base.nbytes) for i in front[here + 1 :]
        ]
        best = int(np.argmax(slopes))
        reached = front[here + 1 + best]
        steps.append((slopes[best], reached, item.choices[reached].nbytes - base.nbytes))
        here += 1 + best
    return steps


def _highs(items: Sequence[Item], useful: Mapping[str, tuple[int, ...]], budget: int) -> Picks | None:
    columns = [(row, index) for row, item in enumerate(items) for index in useful[item.name]]
    cost = np.array([items[row].choices[index].cost for row, index in columns])
    nbytes = np.array([items[row].choices[index].nbytes for row, index in columns], np.float64)
    rows = np.array([row for row, _ in columns])
    pick_one = csr_matrix((np.ones(len(columns)), (rows, np.arange(len(columns)))), (len(items), len(columns)))
    # Both scaled to around 1: HiGHS's tolerances are absolute. Bytes are checked exactly by the caller.
    constraints = vstack([pick_one, csr_matrix(nbytes / budget)])
    lower = np.append(np.ones(len(items)), -np.inf)
    upper = np.append(np.ones(len(items)), 1.0)
    result = milp(
        cost / max(float(cost.max(initial=0)), 1e-300),
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(constraints, lower, upper),
        options={"mip_rel_gap": RELATIVE_GAP, "node_limit": NODE_LIMIT},
    )
    if result.x is None:
        return None
    picks: Picks = {}
    best: dict[int, float] = {}
    for value, (row, index) in zip(result.x, columns, strict=True):
        if value > best.get(row, -1.0):
            best[row] = value
            picks[items[row].name] = index
    return picks


def _fill(items: Sequence[Item], useful: Mapping[str, tuple[int, ...]], picks: Picks, budget: int) -> Picks:
    """Raise single items while bytes are left, the largest saving that fits first."""
    picks = dict(picks)
    left = budget - total_bytes(items, picks)
    while True:
        best: tuple[float, str, int, int] | None = None
        for item in items:
            now = item.choices[picks[item.name]]
            for index in useful[item.name]:
                choice = item.choices[index]
                extra, saved = choice.nbytes - now.nbytes, now.cost - choice.cost
                if 0 < extra <= left and saved > 0 and (best is None or saved > best[0]):
                    best = (saved, item.name, index, extra)
        if best is None:
            return picks
        _, name, index, extra = best
        picks[name] = index
        left -= extra


KNAPSACK = Allocator(
    "knapsack", "least predicted harm within the budget, by integer programming (HiGHS)", solve
)
