"""How important each expert is, and whether it stayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError
from collab_plugin.planning.criteria.builtin_criteria import FREQ, FREQ_SCORE
from collab_plugin.planning.criteria.choose_criterion import usable_criterion
from collab_plugin.planning.criteria.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.planning.pruning import importance_of
from collab_plugin.plans.plan import Plan
from collab_plugin.reports.sizes import moe_layers, original_experts
from collab_plugin.stats.stats import LayerRouting, Stats


@dataclass(frozen=True)
class ImportanceMap:
    """L layers with experts × E original experts.

    ``scores`` f64[L, E]: the criterion's values, None without statistics. ``selections`` i64[L, E]: times
    calibration selected each, likewise. ``kept`` bool[L, E]. ``groups``: contiguous ranges of expert
    ids that the router chooses between, None when the model is not at hand.
    """

    criterion: str
    layers: tuple[int, ...]
    scores: NDArray[np.float64] | None
    selections: NDArray[np.int64] | None
    kept: NDArray[np.bool_]
    groups: int | None

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """bool[L, E]: never selected in calibration, so unknown."""
        if self.selections is None:
            return np.zeros_like(self.kept)
        return np.asarray(self.selections == 0)

    def mass_lost(self, row: int) -> float | None:
        """Share of a layer's selections that went to dropped experts."""
        if self.selections is None or not (total := int(self.selections[row].sum())):
            return None
        return float(self.selections[row][~self.kept[row]].sum() / total)


def importance_map(
    plan: Plan, stats: Stats | None, groups: int | None, criteria: Mapping[str, ImportanceCriterion]
) -> ImportanceMap | None:
    """Return the map, or None when neither plan nor statistics tell how many experts there were.

    ``criteria``: those that are installed, by name. Raises CollabError when the statistics are of another model, or
    the plan's criterion is not installed.
    """
    layers = moe_layers(plan)
    routing = _routing(plan, stats, layers)
    experts = len(routing[0].count) if routing else original_experts(plan)
    if not layers or experts is None:
        return None
    kept = np.ones((len(layers), experts), bool)
    for row, layer in enumerate(layers):
        if ids := plan.pruning.kept.get(layer):
            if max(ids) >= experts:
                raise CollabError(f"the plan keeps expert {max(ids)} of layer {layer}, but there are {experts}")
            kept[row] = np.isin(np.arange(experts), ids)
    if groups is not None and experts % groups:
        raise CollabError(f"{groups} expert groups do not divide the plan's {experts} experts: it is of another model")
    if not routing:
        return ImportanceMap("unknown", layers, None, None, kept, groups)
    criterion = _criterion(plan, routing[0], criteria)
    values = criterion.values(plan.pruning.options)
    options = [CriterionOptions(values, n) for n in layers]
    scores = [importance_of(r, criterion, o) for r, o in zip(routing, options, strict=True)]
    counts = np.stack([r.count for r in routing])
    return ImportanceMap(criterion.name, layers, np.stack(scores), counts, kept, groups)


def _routing(plan: Plan, stats: Stats | None, layers: tuple[int, ...]) -> list[LayerRouting]:
    if stats is None or not stats.routing:
        return []
    missing = [n for n in layers if n not in stats.routing]
    if missing:
        raise CollabError(f"the stats have no routing of layer {missing[0]}: they are of another model than the plan")
    found = [stats.routing[n] for n in layers]
    counts = {len(r.count) for r in found}
    known = original_experts(plan)
    if len(counts) > 1 or (known is not None and counts != {known}):
        raise CollabError(f"the stats have {max(counts)} experts a layer, the plan's model has {known}")
    return found


def _criterion(plan: Plan, routing: LayerRouting, criteria: Mapping[str, ImportanceCriterion]) -> ImportanceCriterion:
    """The plan's own; when it pruned nothing the default, or frequency where there are counts alone."""
    name = plan.pruning.criterion
    if name == "none":
        return usable_criterion(FREQ_SCORE, routing) or FREQ
    if name not in criteria:
        raise CollabError(f"the plan's criterion {name!r} is not installed; install its plugin")
    return criteria[name]
