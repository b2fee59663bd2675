"""Which experts of a layer are hot: a placement policy decides, knowing what calibration saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from collab_plugin.placement.policy import LayerUse, PlacementPolicy, hot_experts
from collab_plugin.plans.plan import Plan
from collab_plugin.plugins.manager import build_registry, pick, plugin_manager
from collab_plugin.stats.stats import LayerRouting
from collab_plugin.stats.stats_file import read_plans_stats
from collab_vllm.selection.loader_options import LoaderOptions


def hot_of_layer(options: LoaderOptions, plan: Plan | None, layer: int, experts: int) -> list[int] | None:
    """Ids, in this model's numbers, of the hot ones among the ``experts`` of ``layer``; None: all are on the device.

    CollabError for a policy or a stats file that cannot be used.
    """
    if options.hot is None:
        return None
    policy = _policy(options.policy)
    return hot_experts(policy, LayerUse(layer, experts, _seen(options, plan, layer, experts)), options.hot)


@lru_cache
def _policy(name: str) -> PlacementPolicy:
    policies = build_registry(plugin_manager(), ("placement_policies",)).placement_policies
    return pick(policies, name, "placement policy")


def _seen(options: LoaderOptions, plan: Plan | None, layer: int, experts: int) -> LayerRouting | None:
    """From the plan's stats file, when it lies beside the plan; None where that says nothing of the layer."""
    if plan is None or options.plan is None or plan.calibration is None:
        return None
    path = options.plan.parent / plan.calibration.file
    if not path.is_file():
        return None
    routing = _routing(path, plan.calibration.sha256).get(layer)
    return None if routing is None else _kept(routing, plan.pruning.kept.get(layer) or range(experts))


@lru_cache(maxsize=1)
def _routing(path: Path, sha256: str) -> Mapping[int, LayerRouting]:
    return read_plans_stats(path, sha256, "put that beside the plan, or take this one away").routing


def _kept(routing: LayerRouting, kept: Sequence[int]) -> LayerRouting:
    ids = list(kept)
    sums = (None if values is None else values[ids] for values in (routing.weight_sum, routing.reap_sum))
    return LayerRouting(routing.tokens, routing.count[ids], *sums)
