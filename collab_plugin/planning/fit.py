"""Which candidates hold the budget."""

from __future__ import annotations

from dataclasses import dataclass

from collab_plugin.errors import CollabError
from collab_plugin.planning.candidates import Candidate, Candidates
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.pruning import check_enough
from collab_plugin.planning.search_space import counts_to_weigh
from collab_plugin.planning.type_choices import Types, type_choices
from collab_plugin.planning.type_limits import Limits


@dataclass(frozen=True)
class Fitted:
    """A candidate whose smallest choices hold the budget, and the types that its tensors may have."""

    candidate: Candidate
    choices: Types


def fit_all(candidates: Candidates, budget: int) -> list[Fitted]:
    """Every candidate that holds the budget; CollabError naming the smallest file when none does."""
    planning, request = candidates.planning, candidates.planning.request
    choices = type_choices(planning, Limits.of(request.base, request.floors, request.ceilings))
    found: list[Fitted] = []
    failed: list[tuple[int, int]] = []
    thin: CollabError | None = None
    for count, used in counts_to_weigh(planning):
        try:
            _check_tokens(planning, count)
        except CollabError as error:
            thin = error
            break
        candidate = candidates.candidate(count, used)
        smallest = candidates.smallest(candidate, choices)
        if smallest <= budget:
            found.append(Fitted(candidate, choices))
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


def _too_small(planning: PlanningInput, budget: int, smallest: int, count: int) -> CollabError:
    request = planning.request
    why = f"with `keep` {request.keep}" if request.keep != "auto" else f"with {count} experts a layer"
    return CollabError(
        f"no plan holds {budget:,} bytes: the smallest {why} takes {smallest:,} bytes; "
        f"raise `budget` to that{' or lower `keep`' if request.keep != 'auto' else ''}"
        f"{' or `base`' if request.base else ''}"
    )
