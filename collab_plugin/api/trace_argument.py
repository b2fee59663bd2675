"""A routing trace as functions take it, in the numbers of the model at hand."""

from __future__ import annotations

import dataclasses
import os

from collab_plugin.api.arguments import AnyPath
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.kept_experts import SOURCE_MODEL_ID, kept_experts
from collab_plugin.errors import CollabError
from collab_plugin.placement.expert_tensors import expert_tensors
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.trace_file import read_trace


def trace_for(trace: RoutingTrace | AnyPath, checkpoint: Checkpoint) -> RoutingTrace:
    """In this model's numbers: of a model that it was pruned from, choices of dropped experts are left out.
    CollabError for a trace of another model."""
    found = read_trace(trace) if isinstance(trace, (str, os.PathLike)) else trace
    tensors = expert_tensors(checkpoint, 1)
    experts = {tensor.layer: tensor.experts for tensor in tensors}
    kept = kept_experts(checkpoint.metadata)
    source = checkpoint.metadata.get(SOURCE_MODEL_ID)
    if kept and found.model_id is not None and source is not None and found.model_id == source.value:
        found = found.renumbered(kept)
    elif found.model_id is not None and found.model_id != model_id(checkpoint):
        raise CollabError(f"the trace is of another model than {checkpoint.address}; record one with `calibrate`")
    if set(found.layers) != set(experts) or found.experts > max(experts.values(), default=0):
        raise CollabError(
            f"the trace has {len(found.layers)} layers and {found.experts} experts, {checkpoint.address} "
            f"{len(experts)} and {max(experts.values(), default=0)}: it is of another model"
        )
    return dataclasses.replace(found, experts=max(experts.values()))
