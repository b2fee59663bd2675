"""Which experts stay: the same number in every layer, groups respected. Page: docs/method.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from collab_plugin.errors import CollabError
from collab_plugin.importance.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.plan import GroupPolicy
from collab_plugin.stats import F64, LayerRouting, Stats
from collab_plugin.topology import Topology

MIN_SELECTIONS = 100
"""Expected activations an expert below which pruning is refused: its count is then uncertain by 10 %
(one over the square root), about the difference between neighbours in rank."""

Kept = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Selection:
    """Result of `select_experts`. ``mass_lost``: mean over layers of the share of activations that
    went to dropped experts. ``unseen[layer]`` ids never selected; ``unseen_dropped`` how many of
    them were pruned nevertheless."""

    kept: Kept
    mass_lost: float
    unseen: Mapping[int, tuple[int, ...]]
    unseen_dropped: int


def minimum_tokens(topology: Topology) -> int:
    """Return the calibration tokens needed before pruning: MIN_SELECTIONS x E / k."""
    return -(-MIN_SELECTIONS * topology.expert_count // topology.experts_used)


def keep_all(topology: Topology) -> Kept:
    """Return every expert of every layer in its order."""
    return {layer: tuple(range(topology.expert_count)) for layer in topology.moe_layers}


def check_counts(topology: Topology, keep: int, used: int, policy: GroupPolicy) -> None:
    """Raise CollabError, with the numbers, for a shape that llama.cpp would abort on or run wrongly.

    Group rules: llama-model.cpp:1365-1369 and llama-graph.cpp:2103 (a group's score is the sum of
    its two best experts; a k that the chosen groups cannot serve silently picks masked experts).
    """
    total = topology.expert_count
    if not 1 <= keep <= total:
        raise CollabError(f"cannot keep {keep} of {total} experts: give 1 to {total}")
    if not 1 <= used <= keep:
        raise CollabError(f"{used} experts used of {keep} kept: give --experts-used 1 to {keep}")
    groups = topology.groups
    if groups == 1 or policy == "disband":
        return
    if keep % groups:
        below, above = keep // groups * groups, -(-keep // groups) * groups
        near = f"{below} or {above}" if below >= 2 * groups else f"{above}"
        raise CollabError(
            f"{keep} kept experts do not split evenly into the router's {groups} groups: "
            f"keep {near}, or use --groups disband"
        )
    each = keep // groups
    if each < 2:
        raise CollabError(
            f"{keep} kept experts leave {each} in each of {groups} groups, and a group's score needs 2: "
            f"keep {2 * groups} or more, or use --groups disband"
        )
    if used > topology.groups_used * each:
        raise CollabError(
            f"{used} experts used need more than the {topology.groups_used} chosen groups hold "
            f"({topology.groups_used} x {each} = {topology.groups_used * each}): keep more experts, "
            f"lower --experts-used, or use --groups disband"
        )


def check_tokens(topology: Topology, stats: Stats, allow_few: bool) -> None:
    """Raise CollabError when ``stats`` saw too few tokens to tell experts apart."""
    needed = minimum_tokens(topology)
    if stats.tokens < needed and not allow_few:
        raise CollabError(
            f"calibration saw {stats.tokens} tokens; pruning {topology.expert_count} experts with top-"
            f"{topology.experts_used} needs {needed} ({MIN_SELECTIONS} selections an expert on average): "
            "calibrate on more text, or pass --allow-few-tokens"
        )


def importance(routing: LayerRouting, criterion: ImportanceCriterion, options: CriterionOptions) -> F64:
    """Return f64[E] scores with unseen experts at the median of the seen ones.

    An expert that was never selected is unknown, not worthless: the median neither protects nor
    condemns it. CollabError when the criterion returns something else than E finite numbers.
    """
    scores = np.array(criterion.score(routing, options), np.float64)
    if scores.shape != routing.count.shape or not np.isfinite(scores).all():
        raise CollabError(
            f"criterion {criterion.name!r} gave no finite score for every expert of layer {options.layer}: "
            "choose another --criterion"
        )
    seen = ~routing.unseen
    if seen.any() and not seen.all():
        scores[~seen] = np.median(scores[seen])
    return scores


def choose(scores: F64, keep: int, groups: int) -> tuple[int, ...]:
    """Return the ``keep`` best ids in ascending order, equally many from each of ``groups``.

    Equal scores: the lower id stays.
    """
    blocks = scores.reshape(groups, -1)
    each = keep // groups
    order = np.argsort(-blocks, axis=1, kind="stable")[:, :each]
    ids = order + np.arange(groups)[:, None] * blocks.shape[1]
    return tuple(int(i) for i in np.sort(ids, axis=None))


def select_experts(
    topology: Topology,
    stats: Stats,
    criterion: ImportanceCriterion,
    keep: int,
    policy: GroupPolicy,
    *,
    alpha: float = 0.5,
    seed: int = 0,
) -> Selection:
    """Choose ``keep`` experts in every layer by ``criterion``; ids stay in ascending order."""
    groups = topology.groups if policy == "balanced" else 1
    kept: dict[int, tuple[int, ...]] = {}
    lost: list[float] = []
    unseen: dict[int, tuple[int, ...]] = {}
    for layer in topology.moe_layers:
        routing = stats.routing[layer]
        scores = importance(routing, criterion, CriterionOptions(alpha, seed, layer))
        kept[layer] = choose(scores, keep, groups)
        lost.append(mass_lost(routing, kept[layer]))
        if routing.unseen.any():
            unseen[layer] = tuple(int(i) for i in np.flatnonzero(routing.unseen))
    dropped = sum(len(set(ids) - set(kept[layer])) for layer, ids in unseen.items())
    return Selection(kept, float(np.mean(lost)), unseen, dropped)


def mass_lost(routing: LayerRouting, kept: tuple[int, ...]) -> float:
    """Return the share of the layer's activations that went to experts outside ``kept``."""
    total = int(routing.count.sum())
    return 1 - int(routing.count[list(kept)].sum()) / total if total else 0.0
