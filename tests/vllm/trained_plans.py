"""Plans that prune the trained models; every weight stays float32, so that engines can be compared closely."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, TensorPlan
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint


def pruning_plan(model: Path, path: Path, *, keep: int, used: int, seed: int = 0, spread: int = 0) -> Plan:
    """Write to ``path`` a plan that keeps ``keep`` random experts, as many in each group, of which ``used`` a token.

    The first layer keeps ``spread`` fewer and the last as many more.
    """
    checkpoint = open_checkpoint(model)
    shape, choose = topology_of(checkpoint), random.Random(seed)
    size = shape.experts_per_group
    numbers = dict.fromkeys(shape.moe_layers, keep)
    numbers[shape.moe_layers[0]] -= spread
    numbers[shape.moe_layers[-1]] += spread
    kept = {
        layer: tuple(
            expert
            for group in range(shape.groups)
            for expert in choose.sample(range(group * size, (group + 1) * size), number // shape.groups)
        )
        for layer, number in numbers.items()
    }
    plan = copy_plan(checkpoint)
    arch = checkpoint.architecture
    plan = dataclasses.replace(
        plan,
        pruning=dataclasses.replace(
            plan.pruning, criterion="random", expert_count=keep, kept=kept,
            group_policy="balanced" if shape.groups > 1 else "none",
        ),
        activation=dataclasses.replace(plan.activation, used=used, rule="given"),
        requires=("expert-count-by-layer",) if spread else (),
        metadata={f"{arch}.expert_used_count": used} | ({} if spread else {f"{arch}.expert_count": keep}),
        tensors={n: TensorPlan("F32", tensor_bytes("F32", i.shape), 0.0) for n, i in checkpoint.tensors.items()},
    )  # fmt: skip
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    write_plan(path, plan)
    return plan
