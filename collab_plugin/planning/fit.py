"""Which candidates hold the budget, and what is relaxed so that they do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.back_off import Limits, next_limits
from collab_plugin.planning.candidates import Candidate, Candidates
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.pruning import check_enough
from collab_plugin.planning.search_space import counts_to_weigh
from collab_plugin.planning.type_choices import Types, type_choices
from collab_plugin.plans.plan import BackOff


@dataclass(frozen=True)
class Fitted:
    """A candidate whose smallest choices hold the budget, and what was relaxed for it."""

    candidate: Candidate
    choices: Types
    steps: tuple[BackOff, ...]


def fit_all(candidates: Candidates, budget: int) -> list[Fitted]:
    """Every candidate that holds the budget; CollabError naming the smallest file when none does."""
    planning = candidates.planning
    found: list[Fitted] = []
    failed: list[tuple[int, int]] = []
    thin: CollabError | None = None
    for count, used in counts_to_weigh(planning):
        try:
            _check_tokens(planning, count)
        except CollabError as error:
            thin = error
            break
        fitted, smallest = _fit(candidates, candidates.candidate(count, used), budget)
        if fitted:
            found.append(fitted)
        failed.append((smallest, count))
    if found:
        return found
    if thin is not None:
        raise thin
    raise _too_small(planning, budget, *min(failed))


def _check_tokens(planning: PlanningInput, count: int) -> None:
    """CollabError when a search should not prune to ``count``: calibration saw too few tokens."""
    request, stats = planning.request, planning.stats
    if count == planning.topology.expert_count or request.keep != "auto" or request.allow_few_tokens:
        return
    assert stats is not None  # counts_to_weigh() prunes on its own only with statistics
    check_enough(stats.routing, planning.topology)


def _fit(candidates: Candidates, candidate: Candidate, budget: int) -> tuple[Fitted | None, int]:
    """Relax limits until the smallest choices hold the budget; also the smallest bytes reached."""
    planning, request = candidates.planning, candidates.planning.request
    guarded = _unprobed(planning) if request.allocator.default_floors else frozenset()
    limits = Limits.start(request.base, request.floors, request.ceilings, guarded=guarded)
    steps: list[BackOff] = []
    while True:
        choices = type_choices(planning, limits)
        smallest = candidates.smallest(candidate, choices)
        if steps:
            steps[-1] = replace(steps[-1], smallest_bytes=smallest)
        if smallest <= budget:
            return Fitted(candidate, choices, tuple(steps)), smallest
        relaxed = next_limits(limits)
        if relaxed is None:
            return None, smallest
        limits, step = relaxed
        steps.append(BackOff(step, 0))


def _unprobed(planning: PlanningInput) -> frozenset[Role]:
    """Roles with a tensor that was not probed: their default floors stand."""
    seen = planning.sensitivity.probed if planning.sensitivity else frozenset()
    return frozenset(i.role for n, i in planning.checkpoint.tensors.items() if quantizable(i) and n not in seen)


def _too_small(planning: PlanningInput, budget: int, smallest: int, count: int) -> CollabError:
    request = planning.request
    why = f"with `keep` {request.keep}" if request.keep != "auto" else f"with {count} experts a layer"
    return CollabError(
        f"no plan holds {budget:,} bytes: the smallest {why} takes {smallest:,} bytes; "
        f"raise `budget` to that{' or lower `keep`' if request.keep != 'auto' else ''}"
        f"{' or `base`' if request.base else ''}"
    )
