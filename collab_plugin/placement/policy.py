"""What a placement policy is: it says which experts of a layer stay on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collab_plugin.errors import CollabError
from collab_plugin.stats.stats import LayerRouting


@dataclass(frozen=True)
class LayerUse:
    """What is known of a layer's experts before the model runs.

    ``layer``: its number. ``experts``: how many it has. ``routing``: what calibration saw of them, in this model's
    numbers (a pruned model's expert 0 is the first one kept); None where no stats file lies beside the plan.
    """

    layer: int
    experts: int
    routing: LayerRouting | None


@dataclass(frozen=True)
class PlacementPolicy:
    """``hot(use, number)`` returns ``number`` ids of experts that stay on the device; the others are in host memory."""

    name: str
    description: str
    hot: Callable[[LayerUse, int], Sequence[int]]


def hot_experts(policy: PlacementPolicy, use: LayerUse, number: int) -> list[int]:
    """Ask the policy; ids in ascending order. CollabError when its answer is not ``number`` experts of the layer."""
    ids = sorted({int(expert) for expert in policy.hot(use, number)})
    if len(ids) != number or ids[0] < 0 or ids[-1] >= use.experts:
        raise CollabError(
            f"placement policy {policy.name!r} chose {ids} in layer {use.layer}, not {number} of its "
            f"{use.experts} experts: choose another, or mend the plugin"
        )
    return ids


def _most_selected(use: LayerUse, number: int) -> Sequence[int]:
    routing = use.routing
    if routing is None:
        return range(number)
    return sorted(range(use.experts), key=lambda expert: (-int(routing.count[expert]), expert))[:number]


MOST_SELECTED = PlacementPolicy(
    "most-selected", "those that calibration selected most; without statistics the first ones", _most_selected
)
