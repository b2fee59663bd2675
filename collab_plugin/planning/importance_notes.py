"""What a plan says of importance that is not there: tensors without data, and pruning that nothing can weigh."""

from __future__ import annotations

from collections.abc import Mapping

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.expert_tables import unknown_tables
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.formats.name_list import few
from collab_plugin.plans.plan import TensorPlan
from collab_plugin.stats.match_model import without_data
from collab_plugin.stats.stats import Stats


def no_data_note(checkpoint: Checkpoint, stats: Stats | None, tensors: Mapping[str, TensorPlan]) -> tuple[str, ...]:
    """The matrices that are quantized without importance, and the types that they got."""
    if stats is None or not stats.imatrix:
        return ()
    by_type: dict[str, list[str]] = {}
    for name in without_data(checkpoint, stats):
        kind = tensors[name].type
        if kind.startswith(("Q", "IQ")) and kind != checkpoint.tensors[name].type.name:
            by_type.setdefault(kind, []).append(name)
    count = sum(len(names) for names in by_type.values())
    if not count:
        return ()
    became = "; ".join(f"{few(names)}: {kind}" for kind, names in sorted(by_type.items()))
    return (
        f"NO IMPORTANCE for {count} of {len(tensors)} tensors: the stats have no data of them, so all their columns "
        f"count alike and types that need importance are not used ({became})",
    )


def no_routing_note(topology: Topology, stats: Stats | None) -> tuple[str, ...]:
    """Why ``keep`` auto weighed no pruning; nothing where it could."""
    missing = [n for n in topology.moe_layers if stats is None or n not in stats.routing]
    if not missing:
        return ()
    why = "there are no stats"
    if stats is not None:
        which = "a layer" if len(missing) == len(topology.moe_layers) else f"layer {missing[0]}"
        why = f"the stats ({stats.engine}) have no counts by expert of {which}"
    return (f"NOTHING IS PRUNED: {why}, so which experts matter is not known; calibrate to weigh pruning too",)


def unknown_tables_note(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Why ``keep`` auto weighed no pruning of a model with tensors that speak of experts in an unknown way."""
    tables = unknown_tables(checkpoint)
    if not tables:
        return ()
    return (f"NOTHING IS PRUNED: {few(tables)} would still speak of the experts that went, in a way unknown here",)
