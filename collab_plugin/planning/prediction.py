"""Whether a plan keeps the layers that predict further tokens: whole where nothing is pruned, else not at all."""

from __future__ import annotations

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.prediction_layers import layers_in_words, prediction_layers, trunk
from collab_plugin.checkpoint.topology import Topology, topology_of
from collab_plugin.planning.pruning import parse_keep
from collab_plugin.plans.plan import GroupPolicy
from collab_plugin.stats.stats import Stats


def prunable(
    checkpoint: Checkpoint, stats: Stats | None, keep: str, groups: GroupPolicy | None, keep_types: bool
) -> Checkpoint:
    """The checkpoint, without its prediction layers where a plan may prune.

    ``keep``, ``groups`` and ``keep_types`` as `plan` takes them. With ``keep`` "auto" that is where pruning is
    weighed: with routing of all layers.
    """
    if not prediction_layers(checkpoint):
        return checkpoint
    topology = topology_of(checkpoint)
    if keep == "auto":
        weighed = not keep_types and stats is not None and set(topology.moe_layers) <= set(stats.routing)
        return trunk(checkpoint) if weighed else checkpoint
    policy = groups or ("balanced" if topology.groups > 1 else "none")
    return trunk(checkpoint) if parse_keep(keep, topology, policy) < topology.expert_count else checkpoint


def prediction_note(topology: Topology) -> tuple[str, ...]:
    """That prediction layers stay, where there are any."""
    if not topology.prediction_layers:
        return ()
    layers = layers_in_words(topology.prediction_layers)
    return (f"KEPT: {layers}, for speculative decoding; no engine shows what matters in them",)
