"""Plans by rule that a plan's report compares with: bits only, pruning only, the paper's setting."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from collab_plugin.checkpoint.checkpoint import TensorInfo, quantizable
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.candidates import Frame, Frames
from collab_plugin.planning.sensitivity import Sensitivity
from collab_plugin.quantize.error import ErrorTable

# The release's types at an IQ1_M base (docs/sources.md, Release), without its rules by depth.
_PAPER = {
    Role.EXPERT: "IQ1_M",
    Role.ATTENTION: "Q4_K",
    Role.SHARED_EXPERT: "Q6_K",
    Role.FFN: "Q4_K",
    Role.EMBEDDING: "Q2_K",
    Role.OUTPUT: "Q5_K",
}
PAPER_KEEP = 0.75


@dataclass(frozen=True)
class Baseline:
    """``cost``: KL divergence predicted for the types alone, in nats."""

    label: str
    frame: Frame
    bytes: int
    cost: float


def baselines(frames: Frames, errors: ErrorTable, sensitivity: Sensitivity, budget: int) -> list[Baseline]:
    """Those that this model can have: "pruning only" at the budget, "paper" at its own bytes.

    "paper" is left out where the user named the types: measuring its own would take most of the time. Both keep as
    many experts in every layer, so they are left out where layers keep their own numbers.
    """
    found: list[Baseline] = []
    if frames.request.layers == "varied":
        return found
    t = frames.topology
    step = t.groups if frames.policy == "balanced" else 1
    counts = range(step, t.expert_count + 1, step)

    def bytes_of(count: int) -> int:
        made = _sized(frames, count, lambda info: "Q8_0")
        return made[2] if made else 0  # too few to be served: go on upwards

    at = bisect_right(counts, budget, key=bytes_of) - 1
    if at >= 0 and (pruned := _baseline(frames, errors, sensitivity, "pruning only", counts[at], lambda info: "Q8_0")):
        found.append(pruned)
    if frames.request.types:
        return found
    count = -(-math.ceil(PAPER_KEEP * t.expert_count) // step) * step
    paper = _baseline(frames, errors, sensitivity, "paper", count, lambda info: _PAPER.get(info.role, "Q4_K"))
    return [*found, paper] if paper else found


def _baseline(
    frames: Frames,
    errors: ErrorTable,
    sensitivity: Sensitivity,
    label: str,
    count: int,
    rule: Callable[[TensorInfo], str],
) -> Baseline | None:
    """None when the router cannot serve that count."""
    made = _sized(frames, count, rule)
    if made is None:
        return None
    frame, types, size = made
    measured = errors.measure({n: (k,) for n, k in types.items()})
    cost = sum(sensitivity.weights[n] * measured[n][k] for n, k in types.items())
    return Baseline(label, frame, size, cost)


def _sized(frames: Frames, count: int, rule: Callable[[TensorInfo], str]) -> tuple[Frame, dict[str, str], int] | None:
    """Frame, types and bytes of a plan by rule."""
    try:
        frame = frames.frame(count, frames.scaled(count))
    except CollabError:
        return None
    types = {}
    for name, info in frames.checkpoint.tensors.items():
        if quantizable(info):
            kind = frames.possible(info, rule(info))
            types[name] = kind if bits_per_weight(kind) < bits_per_weight(info.type.name) else info.type.name
    return frame, types, frame.fixed + sum(frames.size(frame.plan, n, k) for n, k in types.items())
