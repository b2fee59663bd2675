"""The criterion that the statistics at hand allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from collab_plugin.errors import CollabError
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.stats.sensitivity import PruningProbe
from collab_plugin.stats.stats import LayerRouting


def missing_need(criterion: ImportanceCriterion, routing: LayerRouting | None) -> str | None:
    """The first statistic that the criterion needs and ``routing`` lacks; None when nothing is missing."""
    if routing is None:
        return None
    return next((need for need in criterion.needs if getattr(routing, need) is None), None)


def usable_criterion(wanted: ImportanceCriterion, routing: LayerRouting | None) -> ImportanceCriterion | None:
    """``wanted``, or what it names for statistics that are counts only; None when neither can be used."""
    if missing_need(wanted, routing) is None:
        return wanted
    other = wanted.without_weights
    return other if other is not None and missing_need(other, routing) is None else None


def criterion_and_notes(
    wanted: ImportanceCriterion, routing: LayerRouting | None, engine: str
) -> tuple[ImportanceCriterion, tuple[str, ...]]:
    """The criterion to use, and what a reader of the plan must know of it.

    ``engine`` measured the statistics. CollabError when they lack what the criterion needs.
    """
    found = usable_criterion(wanted, routing)
    if found is None:
        raise CollabError(
            f"criterion {wanted.name} needs {missing_need(wanted, routing)}, which the stats lack ({engine}); "
            "calibrate with the engine llamacpp, or take another `criterion`"
        )
    if found is wanted:
        return wanted, ()
    return found, (
        "FREQUENCY ONLY: the stats are an imatrix of another tool without router weights, so experts are chosen by "
        f"{found.description}",
    )


def least_costly(rules: Sequence[str], probes: Sequence[PruningProbe]) -> str:
    """The rule whose prunings cost least, by the geometric mean over what was probed by each; else the first."""
    kld = {(p.rule, p.expert_count, p.experts_used): max(p.kld, 1e-9) for p in probes}
    by_rule = {rule: {key[1:] for key in kld if key[0] == rule} for rule in rules}
    probed = [rule for rule in rules if by_rule[rule]]
    shared = set.intersection(*(by_rule[rule] for rule in probed)) if probed else set()
    if not shared:
        return next(iter(probed), rules[0])
    return min(probed, key=lambda rule: sum(math.log(kld[(rule, *pair)]) for pair in shared))
