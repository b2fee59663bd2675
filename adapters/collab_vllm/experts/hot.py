"""Which experts of a layer are on the device at first, and what decides while the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import Placement
from collab_plugin.placement.placement_file import read_placement
from collab_plugin.placement.policy import F64, LayerUse, PlacementPolicy, hot_experts
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_plugin.plugins.manager import build_registry, pick, plugin_manager
from collab_plugin.stats.stats import LayerRouting
from collab_plugin.stats.stats_file import read_plans_stats
from collab_vllm.experts.tiering.resident_set import ResidentSet
from collab_vllm.selection.loader_options import LoaderOptions

_HARDLY = 1e-6
"""Choices a step that a placement's order of experts is worth where no statistics say more."""


@dataclass(frozen=True)
class TierStart:
    """``hot``: experts on the device at first, in this model's numbers. ``policy`` goes on choosing where it is
    dynamic, from ``expected`` f64[experts], choices a step. ``room`` for so many, of all ranks;
    None: for as many as are there at first."""

    hot: tuple[int, ...]
    policy: PlacementPolicy
    expected: F64
    room: int | None = None

    def resident_set(self, experts: Sequence[int]) -> ResidentSet:
        """For a rank that holds the ``experts``, under its own numbers."""
        place = {expert: number for number, expert in enumerate(experts)}
        hot = [place[expert] for expert in self.hot if expert in place]
        dynamic = self.policy.dynamic
        judge = None if dynamic is None else dynamic(self.expected[None, list(experts)].copy(), self.policy.values)
        room = len(hot) if self.room is None else self.room * len(experts) // len(self.expected)
        return ResidentSet(len(experts), room, hot, judge, self.policy.selective)


def tiers_of_layer(options: LoaderOptions, plan: Plan | None, layer: int, experts: int, used: int) -> TierStart | None:
    """Of the ``experts`` of ``layer``, of which a token chooses ``used``; None: all are on the device.

    CollabError for a policy, a placement or a stats file that cannot be used.
    """
    routing = _seen(options, plan, layer, experts) if options.tiered else None
    use = LayerUse(layer, experts, routing)
    known = routing is not None and routing.count.sum() > 0
    if options.placement is not None:
        hot, policy = _placed(options.placement, plan, layer, experts)
        expected = _by_order(options.placement, layer, experts)
    elif options.hot is not None:
        policy = _policy(options.policy)
        hot = tuple(hot_experts(policy, use, options.hot))
        expected = np.zeros(experts)
    else:
        return None
    return TierStart(hot, policy, use.heat * used if known and policy.learns else expected)


def layers_to_check(options: LoaderOptions, counts: Mapping[int, int]) -> Mapping[int, int]:
    """Experts by layer: ``counts``, or those that a placement names where all layers have as many."""
    if options.placement is None or len(counts) > 1:
        return counts
    experts = _placement(options.placement).experts
    assert experts is not None
    return dict.fromkeys(experts.layers, next(iter(counts.values())))


def _placed(path: Path, plan: Plan | None, layer: int, experts: int) -> tuple[tuple[int, ...], PlacementPolicy]:
    placement = _placement(path)
    assert placement.experts is not None
    placed = placement.experts.layers.get(layer)
    held = 0 if placed is None else sum(map(len, placed.tiers.values()))
    if placed is None or held != experts:
        raise CollabError(f"{path} places {held} experts in layer {layer}, the model has {experts}: it is for another")
    made_of = placement.artifact.plan
    if plan is not None and made_of is not None and made_of != plan_fingerprint(plan):
        raise CollabError(f"{path} is for the artifact of another plan; make it with `collab-plugin place`")
    use = placement.experts.policy
    policy = _policy(use.name)
    policy = policy.told(use.parameters) if use.dynamic else PlacementPolicy(use.name, policy.description, policy.hot)
    hot = placed.tiers.get(placement.tiers[0].name, ())
    return hot, policy


def _by_order(path: Path, layer: int, experts: int) -> F64:
    """Next to nothing, but in the placement's order: those expected to be chosen most first, tier by tier."""
    placement = _placement(path)
    assert placement.experts is not None
    tiers = placement.experts.layers[layer].tiers
    order = [expert for tier in placement.tiers for expert in tiers.get(tier.name, ())]
    expected = np.zeros(experts)
    expected[order] = _HARDLY * np.arange(experts, 0, -1) / experts
    return expected


@lru_cache
def _placement(path: Path) -> Placement:
    placement = read_placement(path)
    if placement.experts is None:
        raise CollabError(f"{path} places whole tensors alone, and vLLM's load format single experts")
    return placement


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
