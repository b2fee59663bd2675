"""Plans made by hand, so that these tests need no planner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.formats.ggml_types import fallback, tensor_bytes
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, TensorPlan


def typed_plan(checkpoint: Checkpoint, choose: Callable[[TensorInfo], str]) -> Plan:
    """``choose`` gives a quantizable tensor's type; row widths that do not fit it fall back."""
    tensors = {}
    for name, info in checkpoint.tensors.items():
        kind = fallback(choose(info), info.shape[-1]) if quantizable(info) else info.type.name
        tensors[name] = TensorPlan(kind, tensor_bytes(kind, info.shape), None)
    plan = dataclasses.replace(copy_plan(checkpoint), tensors=tensors)
    return dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)


def pruned(checkpoint: Checkpoint, plan: Plan, kept: Sequence[int]) -> Plan:
    """The same plan with only the experts ``kept``, in that order, in every MoE layer."""
    layers = {i.layer for i in checkpoint.tensors.values() if i.by_expert and i.layer is not None}
    pruning = dataclasses.replace(
        plan.pruning, criterion="given", expert_count=len(kept), kept={n: tuple(kept) for n in sorted(layers)}
    )
    metadata = {f"{checkpoint.architecture}.expert_count": len(kept)}
    plan = dataclasses.replace(plan, pruning=pruning, metadata=metadata)
    return dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
