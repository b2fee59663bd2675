"""Plans written by hand: the core opens few families, the load format more."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from collab_plugin.plans.plan import Activation, Plan, Pruning, Source, requirements_of
from collab_plugin.plans.plan_file import write_plan


def plan_of(
    routers: Mapping[str, np.ndarray],
    kept: Mapping[int, tuple[int, ...]],
    *,
    experts: int,
    used: int,
    metadata: Mapping[str, int | None] | None = None,
    architecture: str = "tiny",
) -> Plan:
    """A plan for the model of these router weights, float32 under GGUF names; ``experts`` stay a layer (mean)."""
    digest = hashlib.sha256()
    for name in sorted(routers):
        digest.update(name.encode() + routers[name].astype(np.float32).tobytes())
    pruning = Pruning("given", {}, "none", "none", experts, kept, None)
    return Plan(
        source=Source("sha256:0", f"sha256:{digest.hexdigest()}", "tiny", architecture, "gguf", 1, 1),
        requires=requirements_of(pruning),
        calibration=None,
        pruning=pruning,
        activation=Activation(used, used, "given"),
        metadata=metadata or {},
        tensors={}, budget=None, bytes=1, bits_per_weight=1.0, predicted_kld=None, prediction="", sensitivity=None,
        considered=(),
        allocator="none", allocator_options={}, base="", notes=(), versions={},
    )  # fmt: skip


def save_plan(path: Path, plan: Plan) -> Path:
    write_plan(path, plan)
    return path
