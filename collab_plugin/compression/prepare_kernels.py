"""The tables of every type that a plan quantizes to, built before threads ask for them."""

from __future__ import annotations

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.plans.plan import Plan
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint


def prepare(plan: Plan, checkpoint: Checkpoint, kernels: Kernels | None) -> None:
    """Build them, from this one thread."""
    if kernels is not None:
        repaired = checkpoint.repaired if isinstance(checkpoint, RepairedCheckpoint) else {}
        made = (n for n, t in plan.tensors.items() if n in repaired or t.type != checkpoint.tensors[n].type.name)
        for kind in sorted({plan.tensors[name].type for name in made}):
            kernels.prepare(kind)
