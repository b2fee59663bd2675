"""Which experts stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.planning.criteria.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.plans.plan import GroupPolicy, Order
from collab_plugin.stats.stats import LayerRouting

MIN_SELECTIONS = 50
"""Mean selections an expert needs before importance means something: a count of 50 is known to 14 %."""


@dataclass(frozen=True)
class Kept:
    """``kept[layer]``: original ids in their new order. ``mass_lost``: share of selections of the dropped,
    a mean; ``weight_lost[layer]``: share of router weight, or of selections where weights are unknown."""

    kept: Mapping[int, tuple[int, ...]]
    mass_lost: float
    weight_lost: Mapping[int, float]
    unseen_dropped: int


def parse_keep(text: str, topology: Topology, policy: GroupPolicy) -> int:
    """Experts to keep a layer, from "0.75", "75%" or a count; a share is rounded up (paper: ceil(r E)).

    With balanced groups a share is rounded up to a multiple of the groups; a count must be one.
    """
    step = topology.groups if policy == "balanced" else 1
    total = topology.expert_count
    try:
        if text.endswith("%") or "." in text:
            share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
            count = -(-math.ceil(round(share * total, 9)) // step) * step
        else:
            count = int(text)
    except (ValueError, OverflowError):
        raise CollabError(f"`keep` {text!r} is neither auto, a share like 0.75 or 75%, nor a count") from None
    if not 1 <= count <= total:
        raise CollabError(f"`keep` {text}: {count} experts of {total} cannot be kept")
    if count % step:
        raise CollabError(
            f"`keep` {text}: {count} experts do not divide into {step} groups; "
            f"keep {count // step * step} or {-(-count // step) * step}, or `groups` disband"
        )
    return count


def check_servable(topology: Topology, count: int, used: int, policy: GroupPolicy) -> None:
    """CollabError when ``used`` experts a token cannot be chosen from ``count`` under the group policy."""
    if not 1 <= used <= count:
        raise CollabError(f"{used} experts a token cannot come from {count} kept ones; lower `experts_used`")
    if policy == "disband" or topology.groups == 1:
        return
    a_group = count // topology.groups
    if a_group < 2:
        raise CollabError(
            f"{count} experts in {topology.groups} groups leave {a_group} a group; the group score needs 2 "
            f"(keep {2 * topology.groups} or more, or `groups` disband)"
        )
    if used > topology.groups_used * a_group:
        raise CollabError(
            f"{used} experts a token cannot come from {topology.groups_used} groups of {a_group}; "
            f"lower `experts_used` to {topology.groups_used * a_group}, keep more, or `groups` disband"
        )


def fewest_servable(topology: Topology, used: int, policy: GroupPolicy) -> int:
    """The smallest count that `check_servable` lets pass; with balanced groups a multiple of them."""
    if policy == "disband" or topology.groups == 1:
        return used
    return topology.groups * max(2, -(-used // topology.groups_used))


def check_routing(routing: Mapping[int, LayerRouting], topology: Topology) -> None:
    """CollabError when a layer with experts has no statistics."""
    missing = [layer for layer in topology.moe_layers if layer not in routing]
    if missing:
        raise CollabError(f"the stats have no routing of layer {missing[0]}; calibrate this model")


def check_enough(routing: Mapping[int, LayerRouting], topology: Topology) -> None:
    """CollabError when calibration saw too few tokens to prune on."""
    for layer in topology.moe_layers:
        mean = float(routing[layer].count.mean())
        if mean < MIN_SELECTIONS:
            need = math.ceil(MIN_SELECTIONS * topology.expert_count / topology.experts_used)
            raise CollabError(
                f"too few calibration tokens to prune on: layer {layer} selected an expert {mean:.1f} times on "
                f"average, {MIN_SELECTIONS} are needed (about {need:,} tokens); calibrate on more text or "
                "`allow_few_tokens`"
            )


def importance_of(
    routing: LayerRouting, criterion: ImportanceCriterion, options: CriterionOptions
) -> NDArray[np.float64]:
    """The criterion's scores f64[E]; those never seen get what `ImportanceCriterion.unseen` says."""
    values = np.asarray(criterion.score(routing, options), np.float64).copy()
    if values.shape != routing.count.shape or not np.isfinite(values).all():
        raise CollabError(
            f"criterion {criterion.name} returned {values.shape} values, some perhaps not finite, "
            f"for {routing.count.shape} experts of layer {options.layer}: its plugin is at fault"
        )
    unseen = routing.unseen
    if criterion.unseen == "median" and unseen.any() and not unseen.all():
        values[unseen] = np.median(values[~unseen])
    return values


def choose(
    routing: Mapping[int, LayerRouting],
    topology: Topology,
    count: int,
    policy: GroupPolicy,
    criterion: ImportanceCriterion,
    options: CriterionOptions,
    order: Order = "original",
    fewest: int | None = None,
) -> Kept:
    """Keep the ``count`` most important experts of every layer.

    With ``fewest`` the experts of all layers compete instead (`shares_of`): ``count`` is what layers keep on
    average, to the expert, and ``fewest`` what each keeps at least.

    ``order``: "original" ids ascending, or "importance", the best of each group first: then hot experts
    are one contiguous range of the file, which llama.cpp copies and pages in together.

    ``balanced``: the same number in each contiguous group, so that kept experts stay in their group.
    Equal scores: the lower id stays.
    """
    groups = topology.groups if policy == "balanced" else 1
    by_layer = {
        layer: importance_of(routing[layer], criterion, replace(options, layer=layer)).reshape(groups, -1)
        for layer in topology.moe_layers
    }
    shares = dict.fromkeys(by_layer, count // groups)
    if fewest is not None:
        shares = shares_of(by_layer, count // groups, fewest // groups)
    kept: dict[int, tuple[int, ...]] = {}
    lost: list[float] = []
    weight_lost: dict[int, float] = {}
    unseen = 0
    for layer, scores in by_layer.items():
        best = np.argsort(-scores, axis=1, kind="stable")[:, : shares[layer]]
        ranked = best + np.arange(groups)[:, None] * scores.shape[1]
        ids = (np.sort(ranked, axis=1) if order == "original" else ranked).reshape(-1)
        kept[layer] = tuple(int(i) for i in ids)
        dropped = np.setdiff1d(np.arange(topology.expert_count), ids)
        total = int(routing[layer].count.sum())
        lost.append(float(routing[layer].count[dropped].sum()) / max(total, 1))
        mass = routing[layer].count if (sums := routing[layer].weight_sum) is None else sums
        weight_lost[layer] = float(mass[dropped].sum() / max(float(mass.sum()), 1e-300))
        unseen += int(routing[layer].unseen[dropped].sum())
    return Kept(kept, float(np.mean(lost)), weight_lost, unseen)


def shares_of(scores: Mapping[int, NDArray[np.float64]], mean: int, fewest: int) -> dict[int, int]:
    """Experts that each layer keeps in every group: ``mean`` on average, at least ``fewest``.

    ``scores[layer]``: the criterion's, f64[groups, experts a group]. The sum of the kept scores is the largest
    possible. A step takes the next best expert of every group of a layer, and counts as their mean. Equal
    steps: the better rank first, then the lower layer.

    Scores of layers are compared as the criterion gives them. The built-in ones are scaled to the layer's
    largest ("layer-max"), so what competes is an expert's worth beside the best of its own layer: a layer whose
    experts share the work keeps more than one where few do it. Unscaled, sums and norms grow with depth, and whole
    layers would lose to others; Lee et al. (arXiv 2010.07611) argue so for weights and scale within layers before
    they compare across them.
    """
    steps = [
        (-float(worth), rank, layer)
        for layer, values in scores.items()
        for rank, worth in enumerate(np.sort(values, axis=1)[:, ::-1].mean(axis=0))
        if rank >= fewest
    ]
    shares = dict.fromkeys(scores, fewest)
    for _, _, layer in sorted(steps)[: (mean - fewest) * len(scores)]:
        shares[layer] += 1
    return shares
