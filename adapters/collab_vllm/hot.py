"""Which experts of a layer are hot: a placement policy decides, knowing what calibration saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from collab_plugin.manager import build_registry, pick, plugin_manager
from collab_plugin.placement.policy import LayerUse, PlacementPolicy, hot_experts
from collab_plugin.stats import LayerRouting
from collab_plugin.stats_file import read_stats

if TYPE_CHECKING:
    from collab_vllm.startup import Prepared


def hot_of_layer(prepared: Prepared, block: int, experts: int) -> list[int] | None:
    """Ids, in this model's numbers, of the ``hot`` experts of layer ``block``; None when all are on the device."""
    number = prepared.options.hot
    if number is None:
        return None
    use = LayerUse(block, experts, _seen(prepared, block, experts))
    return hot_experts(placement_policy(prepared.options.policy), use, number)


@lru_cache
def placement_policy(name: str) -> PlacementPolicy:
    """CollabError naming those that are installed, when there is none of that name."""
    policies = build_registry(plugin_manager(), ("placement_policies",)).placement_policies
    return pick(policies, name, "placement policy")


def _seen(prepared: Prepared, block: int, experts: int) -> LayerRouting | None:
    """From the plan's stats file, when it lies beside the plan."""
    plan, path = prepared.plan, prepared.options.plan
    if plan is None or path is None or plan.calibration is None:
        return None
    stats = path.parent / plan.calibration.file
    if not stats.is_file():
        return None
    return _kept(_routing(stats)[block], plan.pruning.kept.get(block) or range(experts))


@lru_cache(maxsize=1)
def _routing(stats: Path) -> Mapping[int, LayerRouting]:
    return read_stats(stats).routing


def _kept(routing: LayerRouting, kept: Sequence[int]) -> LayerRouting:
    ids = list(kept)
    sums = (None if values is None else values[ids] for values in (routing.weight_sum, routing.reap_sum))
    return LayerRouting(routing.tokens, routing.count[ids], *sums)
