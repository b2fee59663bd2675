"""How many experts to keep and to use: what a request leaves open, and in which order prunings are probed."""

from __future__ import annotations

from collections.abc import Mapping

from collab_plugin.checkpoint.expert_tables import unknown_tables
from collab_plugin.errors import CollabError
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.criteria.choose_criterion import least_costly
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.pruning import check_servable, parse_keep
from collab_plugin.planning.top_k import scaled_top_k
from collab_plugin.stats.sensitivity import Sensitivity

STEPS = 32
FEWEST = 4
"""The search weighs counts a 32nd of the experts apart, down to a quarter of them."""
MARKS = (1 / 4, 1 / 2, 1 / 8, 3 / 8, 5 / 8, 1 / 16)
"""Shares of experts dropped at which prunings are probed, most telling first; between them the curve is smooth."""
COMPARED = 2
"""Marks at which criteria are compared, where the request leaves them open."""
OTHER_TOP_K = 2
"""Marks at which also other numbers of experts a token than the model's own are probed."""


def notches(planning: PlanningInput) -> list[int]:
    """Counts that the search weighs: all experts, then a 32nd fewer each (whole groups), down to a quarter."""
    t = planning.topology
    step = max(t.expert_count // STEPS, 1)
    if planning.policy == "balanced":
        step = -(-step // t.groups) * t.groups
    return list(range(t.expert_count, -(-t.expert_count // FEWEST) - 1, -step))


def counts_to_weigh(planning: PlanningInput) -> list[tuple[int, int]]:
    """(experts kept, experts used) that the request leaves open, all experts first; at least one.

    Raises CollabError when no count can serve the experts a token that were asked for.
    """
    t, request, stats = planning.topology, planning.request, planning.stats
    if request.keep != "auto":
        counts = [parse_keep(request.keep, t, planning.policy)]
    elif stats is None or unknown_tables(planning.checkpoint) or not set(t.moe_layers) <= set(stats.routing):
        counts = [t.expert_count]
    else:
        counts = notches(planning)
    found = []
    for count in counts:
        used = _used(planning, count)
        found += [(count, k) for k in used if len(counts) == 1 or servable(planning, count, k)]
    if not found:
        check_servable(t, counts[0], _used(planning, counts[0])[0], planning.policy)
    return found


def _used(planning: PlanningInput, count: int) -> list[int]:
    """Experts a token to weigh with ``count`` kept."""
    asked, scaled = planning.request.experts_used, scaled_top_k(planning.topology, count)
    if isinstance(asked, int):
        return [asked]
    return sorted({scaled, planning.topology.experts_used}, reverse=True) if asked == "auto" else [scaled]


def servable(planning: PlanningInput, count: int, used: int) -> bool:
    """True when ``used`` experts a token can be chosen from ``count`` under the group policy."""
    try:
        check_servable(planning.topology, count, used, planning.policy)
    except CollabError:
        return False
    return True


def prunings(candidates: Candidates) -> list[tuple[int, int]]:
    """(experts kept, experts used) to probe, most telling first: of what the request leaves open, the nearest to each
    mark."""
    t = candidates.planning.topology
    every = (t.expert_count, t.experts_used)
    possible = [p for p in counts_to_weigh(candidates.planning) if p != every and _possible(candidates, *p)]
    counts = sorted({count for count, _ in possible}, reverse=True)
    found: list[tuple[int, int]] = []
    for number, mark in enumerate(MARKS if counts else ()):
        near = min(counts, key=lambda count: abs(1 - count / t.expert_count - mark))
        used = sorted((k for count, k in possible if count == near), reverse=True)
        found += [(near, k) for k in (used if number < OTHER_TOP_K else used[:1]) if (near, k) not in found]
    return found


def prunings_by_rule(by_rule: Mapping[str, Candidates], found: Sensitivity) -> list[tuple[str, int, int]]:
    """(rule, experts kept, experts used) to probe now that ``found`` is known: with several rules each at the first
    marks, then the best of them at the others."""
    wanted = {rule: prunings(candidates) for rule, candidates in by_rule.items()}
    first = next(iter(wanted))
    if len(wanted) == 1:
        return [(first, *pair) for pair in wanted[first]]
    counts = list(dict.fromkeys(count for count, _ in wanted[first]))[:COMPARED]
    compared = [max(p for p in wanted[first] if p[0] == count) for count in counts]
    tasks = [(rule, *pair) for pair in compared for rule in wanted]
    known = {(p.rule, p.expert_count, p.experts_used) for p in found.prunings}
    if set(tasks) <= known:
        best = least_costly(list(wanted), found.prunings)
        tasks += [(best, *pair) for pair in wanted[best] if pair not in compared]
    return tasks


def _possible(candidates: Candidates, count: int, used: int) -> bool:
    """False where a search would not prune (too few calibration tokens); what was asked for raises."""
    try:
        candidates.candidate(count, used)
    except CollabError:
        if candidates.planning.request.keep != "auto":
            raise
        return False
    return True
