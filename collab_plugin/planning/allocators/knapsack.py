"""Bit allocation as a multiple-choice knapsack, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from collab_plugin.planning.allocators.allocator import Allocator, Choice, Item
from collab_plugin.planning.allocators.quiet import quiet_stdout
from collab_plugin.planning.allocators.reduction import reduced
from collab_plugin.planning.options import Option, OptionValue

GAP = 1e-6


def _useful(choices: Sequence[Choice]) -> list[int]:
    """Indices in ascending bytes whose cost is below that of everything cheaper."""
    kept: list[int] = []
    for index in sorted(range(len(choices)), key=lambda i: (choices[i].nbytes, choices[i].cost)):
        if not kept or choices[index].cost < choices[kept[-1]].cost:
            kept.append(index)
    return kept


def _not_positive(value: OptionValue) -> str | None:
    return None if float(value) > 0 else "is not above 0"


SECONDS = Option("seconds", 20.0, "longest time for the solver; the best found by then is taken", _not_positive)


def solve(items: Sequence[Item], budget: int, options: Mapping[str, OptionValue]) -> dict[str, int]:
    """Least total cost within ``budget`` bytes; see `Allocator`.

    Minimise Σ c·x subject to Σ_j x_ij = 1 for each item and Σ b·x ≤ budget, x binary.
    """
    useful = [_useful(item.choices) for item in items]
    floor = sum(item.choices[u[0]].nbytes for item, u in zip(items, useful, strict=True))
    if floor > budget:
        raise ValueError(f"the smallest choices take {floor} bytes of {budget}")
    asked = reduced(items, useful, budget)
    owner = np.repeat(np.arange(len(items)), [len(u) for u in asked])
    flat = [(item, item.choices[j], j) for item, u in zip(items, asked, strict=True) for j in u]
    cost = np.array([choice.cost for _, choice, _ in flat])
    size = np.array([choice.nbytes for _, choice, _ in flat], np.float64)
    scale = max(float(cost.max(initial=0)), 1e-300)
    one_each = csr_matrix((np.ones(len(flat)), (owner, np.arange(len(flat)))), (len(items), len(flat)))
    # HiGHS 1.12 prints a line whenever it repairs a solution, whatever its options (ERGO-Code/HiGHS#2783).
    with quiet_stdout():
        result = milp(
            cost / scale,
            constraints=[
                LinearConstraint(one_each, 1, 1),
                # In units of the budget: HiGHS wants coefficients near one.
                LinearConstraint(csr_matrix(size / budget), -np.inf, 1.0),
            ],
            integrality=np.ones(len(flat), np.int64),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": GAP, "time_limit": float(options[SECONDS.name])},
        )
    if result.x is None:
        picked = {item.name: u[0] for item, u in zip(items, useful, strict=True)}
    else:
        best = {i: int(np.argmax(np.where(owner == i, result.x, -1))) for i in range(len(items))}
        picked = {items[i].name: flat[k][2] for i, k in best.items()}
    return _repair(items, useful, picked, budget)


def _repair(
    items: Sequence[Item], useful: Sequence[Sequence[int]], picked: dict[str, int], budget: int
) -> dict[str, int]:
    """Hold the budget exactly in integers, then spend what is left where it helps most a byte."""
    used = sum(item.choices[picked[item.name]].nbytes for item in items)
    while used > budget:  # floating-point slack of the solver: step down where it costs least
        steps = [
            (item.choices[lower].cost - item.choices[picked[item.name]].cost, item.name, lower, item)
            for item, u in zip(items, useful, strict=True)
            if (lower := _neighbour(u, picked[item.name], -1)) is not None
        ]
        _, name, lower, item = min(steps, key=lambda s: s[:2])
        used += item.choices[lower].nbytes - item.choices[picked[name]].nbytes
        picked[name] = lower
    while True:
        gains = []
        for item, u in zip(items, useful, strict=True):
            now = item.choices[picked[item.name]]
            for upper in u[u.index(picked[item.name]) + 1 :]:
                more = item.choices[upper].nbytes - now.nbytes
                if used + more <= budget:
                    gains.append(((now.cost - item.choices[upper].cost) / more, item.name, upper, more))
        if not gains:
            return picked
        _, name, upper, more = max(gains, key=lambda g: (g[0], g[1]))
        picked[name] = upper
        used += more


def _neighbour(useful: Sequence[int], at: int, step: int) -> int | None:
    index = list(useful).index(at) + step
    return useful[index] if 0 <= index < len(useful) else None


KNAPSACK = Allocator(
    "knapsack",
    "least predicted cost within the budget, solved by HiGHS (default)",
    solve,
    options=(SECONDS,),
    follows_frontier=True,
)


def _uniform(items: Sequence[Item], budget: int, options: Mapping[str, OptionValue]) -> Mapping[str, int]:
    """One type for all tensors: the largest that fits; where a tensor lacks it, its next smaller one."""
    names = {choice.type for item in items for choice in item.choices}
    best: dict[str, int] | None = None
    size = -1
    for limit in sorted(names):
        picked = {item.name: _at_most(item.choices, limit) for item in items}
        total = sum(item.choices[picked[item.name]].nbytes for item in items)
        if size < total <= budget:
            best, size = picked, total
    if best is None:
        raise ValueError("no single type fits the budget")
    return best


def _at_most(choices: Sequence[Choice], kind: str) -> int:
    from collab_plugin.formats.ggml_types import bits_per_weight

    bits = bits_per_weight(kind)
    fitting = [i for i, c in enumerate(choices) if bits_per_weight(c.type) <= bits]
    exact = [i for i, c in enumerate(choices) if c.type == kind]
    if exact:
        return exact[0]
    return max(fitting, key=lambda i: choices[i].nbytes) if fitting else 0


UNIFORM = Allocator("uniform", "one type for all tensors, the largest that fits: a baseline", _uniform)
