"""Which types a tensor may get, and the bytes that each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.formats.ggml_types import (
    ONLY_COPIED,
    TYPES,
    bits_per_weight,
    fallback,
    tensor_bytes,
    without_imatrix,
)
from collab_plugin.formats.gguf_layout import DEFAULT_ALIGNMENT, padded
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.request import DEFAULT_TYPES
from collab_plugin.planning.type_limits import Limits
from collab_plugin.plans.artifact import new_shape
from collab_plugin.plans.plan import Plan

Types = Mapping[str, tuple[str, ...]]
"""Candidate types by tensor."""


def type_choices(planning: PlanningInput, limits: Limits) -> dict[str, tuple[str, ...]]:
    """Candidate types by tensor, ascending bits; only quantizable tensors are listed."""
    tensors = planning.checkpoint.tensors
    return {n: _tensor_choices(planning, i, limits) for n, i in tensors.items() if quantizable(i)}


def _tensor_choices(planning: PlanningInput, info: TensorInfo, limits: Limits) -> tuple[str, ...]:
    stored, asked = info.type.name, planning.request.types
    if stored not in TYPES and stored not in ONLY_COPIED:
        return (stored,)
    low, high = (bits_per_weight(kind) for kind in limits.bounds(info.role))
    usable = {
        k
        for k in (possible(planning, info, kind) for kind in asked or DEFAULT_TYPES)
        if bits_per_weight(k) < bits_per_weight(stored)
    }
    kinds = {k for k in usable if low <= bits_per_weight(k) <= high}
    if not asked and bits_per_weight(stored) <= high:
        kinds.add(stored)
    if not kinds:
        # Nothing lies between floor and ceiling: the largest type there is, before leaving it as it is.
        kinds = {max(usable, key=bits_per_weight)} if usable else {stored}
    return tuple(sorted(kinds, key=lambda kind: (bits_per_weight(kind), kind)))


def possible(planning: PlanningInput, info: TensorInfo, kind: str) -> str:
    """``kind``, or what this tensor gets instead: no importance vector, or rows that do not divide."""
    weighed = info.role == Role.EMBEDDING or (planning.stats is not None and info.name in planning.stats.imatrix)
    return fallback(kind if weighed else without_imatrix(kind), info.shape[-1])


def size_in_file(checkpoint: Checkpoint, plan: Plan, name: str, kind: str) -> int:
    """Bytes of a tensor in the plan's file, padding included."""
    return sizes_in_file(checkpoint, plan, name, (kind,))[0]


def sizes_in_file(checkpoint: Checkpoint, plan: Plan, name: str, kinds: Sequence[str]) -> list[int]:
    """`size_in_file` at each of ``kinds``."""
    found = checkpoint.metadata.get("general.alignment")
    alignment, shape = int(found.value) if found else DEFAULT_ALIGNMENT, new_shape(checkpoint.tensors[name], plan)
    return [padded(tensor_bytes(kind, shape), alignment) for kind in kinds]
