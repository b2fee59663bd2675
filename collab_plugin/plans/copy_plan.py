"""A plan that changes nothing: a Hugging Face folder becomes a GGUF of the same values."""

from __future__ import annotations

import dataclasses

from collab_plugin import __version__
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import fingerprint, model_id
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import Activation, Plan, Pruning, Source, TensorPlan


def copy_plan(checkpoint: Checkpoint) -> Plan:
    """Every tensor at its stored type, every expert kept."""
    t = topology_of(checkpoint)
    plan = Plan(
        source=Source(
            fingerprint(checkpoint), model_id(checkpoint), t.name, t.architecture, checkpoint.format,
            t.total_bytes, t.total_parameters,
        ),
        requires=(),
        calibration=None,
        pruning=Pruning("none", {}, "none", "none", t.expert_count, {}, None),
        activation=Activation(t.experts_used, t.experts_used, "unchanged"),
        metadata={},
        tensors={n: TensorPlan(i.type.name, i.nbytes, 0.0) for n, i in checkpoint.tensors.items()},
        budget=None,
        bytes=0,
        bits_per_weight=0.0,
        predicted_kld=None,
        prediction="",
        sensitivity=None,
        considered=(),
        allocator="none",
        allocator_options={},
        base="",
        notes=checkpoint.notes,
        versions={"collab-plugin": __version__},
    )  # fmt: skip
    total = artifact_layout(checkpoint, plan).total
    return dataclasses.replace(plan, bytes=total, bits_per_weight=total * 8 / t.total_parameters)
