"""A plan with its experts in another order in the file: those that are read together, or often, as neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.errors import CollabError
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import Plan
from collab_plugin.stats.routing_trace import NONE, RoutingTrace

FileOrder = Literal["heat", "co-activation"]
F64 = NDArray[np.float64]


def ordered_by(plan: Plan, checkpoint: Checkpoint, order: FileOrder, ties: Mapping[int, F64]) -> Plan:
    """``plan`` with the kept experts of each layer in another order, and the exact bytes that its file then has.

    ``ties``: layer -> f64[E] how often each was chosen (heat), or f64[E, E] how often two were chosen together
    (co-activation), in the numbers of ``checkpoint``. Layers that it lacks stay as they are. Expert groups stay where
    they are, each in an order of its own.
    """
    topology = topology_of(checkpoint)
    groups = topology.groups if plan.pruning.group_policy != "disband" else 1
    kept = dict(plan.pruning.kept) or {n: tuple(range(topology.expert_count)) for n in topology.moe_layers}
    for layer in set(kept) & set(ties):
        parts = np.array_split(np.array(kept[layer]), groups)
        sort = by_heat if order == "heat" else by_company
        kept[layer] = tuple(int(expert) for part in parts for expert in sort(part, ties[layer]))
    changed = dataclasses.replace(plan, pruning=dataclasses.replace(plan.pruning, kept=kept, order=order))
    total = artifact_layout(checkpoint, changed).total
    return dataclasses.replace(changed, bytes=total, bits_per_weight=total * 8 / topology.total_parameters)


def by_heat(experts: NDArray[np.int64], counts: F64) -> NDArray[np.int64]:
    """The most chosen first; of equal ones the lower number."""
    return experts[np.lexsort((experts, -counts[experts]))]


def by_company(experts: NDArray[np.int64], together: F64) -> NDArray[np.int64]:
    """Along the second eigenvector of the graph whose edges are ``together`` (Fiedler's ordering, which keeps what is
    tied strongly close in a line); the end with more choices first."""
    if len(experts) < 3:
        return experts
    ties = together[np.ix_(experts, experts)].astype(np.float64)
    own = ties.diagonal().copy()
    np.fill_diagonal(ties, 0)
    ties = (ties + ties.T) / 2
    # What two experts have together beyond what their shares alone would give: else the line is one of heat.
    expected = np.outer(own, own) / max(own.sum(), 1e-300)
    ties = np.maximum(ties - expected, 0) + 1e-9 * max(float(ties.max()), 1e-300)
    np.fill_diagonal(ties, 0)
    _, vectors = np.linalg.eigh(np.diag(ties.sum(1)) - ties)
    line = experts[np.argsort(vectors[:, 1], kind="stable")]
    heat = together.diagonal()[line]
    half = len(line) // 2
    return line if heat[:half].sum() >= heat[half:].sum() else line[::-1]


def heat_of(trace: RoutingTrace) -> dict[int, F64]:
    """Layer -> f64[E]: how often each expert was chosen."""
    return {layer: row.astype(np.float64) for layer, row in zip(trace.layers, trace.counts, strict=True)}


def company_of(trace: RoutingTrace) -> dict[int, F64]:
    """Layer -> f64[E, E]: tokens that chose both experts; on the diagonal those that chose the one."""
    found = {}
    for at, layer in enumerate(trace.layers):
        chosen = np.zeros((trace.tokens, trace.experts + 1), np.float32)
        np.put_along_axis(chosen, trace.chosen[:, at].astype(np.int64) % (trace.experts + 1), 1.0, 1)
        assert NONE % (trace.experts + 1) == trace.experts
        each = chosen[:, : trace.experts]
        found[layer] = (each.T @ each).astype(np.float64)
    return found


def check_order(order: str) -> FileOrder:
    """CollabError for an order that is not known."""
    if order not in ("heat", "co-activation"):
        raise CollabError(f"`order` {order!r} is neither heat nor co-activation")
    return "heat" if order == "heat" else "co-activation"
