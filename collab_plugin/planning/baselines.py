"""Plans by rule that a plan's report compares with: pruning only, llama-quantize's presets, the paper's setting."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from collab_plugin.checkpoint.checkpoint import TensorInfo, quantizable
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.candidates import Candidate, Candidates
from collab_plugin.planning.costs import Costs
from collab_plugin.planning.presets import PRESETS, preset_types
from collab_plugin.planning.type_choices import possible, size_in_file
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
    """``cost``: of the types, the sum of weights times errors."""

    label: str
    candidate: Candidate
    bytes: int
    cost: float


def baselines(candidates: Candidates, errors: ErrorTable, costs: Costs, budget: int) -> list[Baseline]:
    """Those that this model can have: "pruning only" and the best of llama-quantize's presets at the budget, "paper" at
    its own bytes.

    The last two are left out where the user named the types: measuring their own would take most of the time. All keep
    as many experts in every layer, so they are left out where layers keep their own numbers.
    """
    found: list[Baseline] = []
    planning = candidates.planning
    if planning.request.layers == "varied":
        return found
    t = planning.topology
    step = t.groups if planning.policy == "balanced" else 1
    counts = range(step, t.expert_count + 1, step)

    def bytes_of(count: int) -> int:
        made = _sized(candidates, count, lambda info: "Q8_0")
        return made[2] if made else 0  # too few to be served: go on upwards

    at = bisect_right(counts, budget, key=bytes_of) - 1
    if at >= 0 and (pruned := _baseline(candidates, errors, costs, "pruning only", counts[at], lambda info: "Q8_0")):
        found.append(pruned)
    if planning.request.types:
        return found
    if presets := fitting_presets(candidates, errors, costs, budget):
        found.append(min(presets, key=lambda preset: preset.cost))
    count = -(-math.ceil(PAPER_KEEP * t.expert_count) // step) * step
    paper = _baseline(candidates, errors, costs, "paper", count, lambda info: _PAPER.get(info.role, "Q4_K"))
    return [*found, paper] if paper else found


def fitting_presets(candidates: Candidates, errors: ErrorTable, costs: Costs, budget: int) -> list[Baseline]:
    """What llama-quantize makes of all experts by each of its presets, where that is within the budget."""
    planning, found = candidates.planning, []
    for preset in PRESETS:
        types = preset_types(planning.checkpoint, preset, imatrix=bool(planning.stats and planning.stats.imatrix))
        label, count = f"llama-quantize {preset}", planning.topology.expert_count
        made = _sized(candidates, count, _by_name(types))
        if made is not None and made[2] <= budget:
            found.append(_costed(made, errors, costs, label))
    return found


def _by_name(types: Mapping[str, str]) -> Callable[[TensorInfo], str]:
    return lambda info: types[info.name]


def _baseline(
    candidates: Candidates,
    errors: ErrorTable,
    costs: Costs,
    label: str,
    count: int,
    rule: Callable[[TensorInfo], str],
) -> Baseline | None:
    """None when the router cannot serve that count."""
    made = _sized(candidates, count, rule)
    if made is None:
        return None
    return _costed(made, errors, costs, label)


_Sized = tuple[Candidate, dict[str, str], int]


def _costed(made: _Sized, errors: ErrorTable, costs: Costs, label: str) -> Baseline:
    candidate, types, size = made
    measured = errors.measure({n: (k,) for n, k in types.items()})
    cost = sum(costs.of(n, k, measured[n][k]) for n, k in types.items())
    return Baseline(label, candidate, size, cost)


def _sized(candidates: Candidates, count: int, rule: Callable[[TensorInfo], str]) -> _Sized | None:
    """Candidate, types and bytes of a plan by rule."""
    try:
        candidate = candidates.candidate(count, candidates.scaled(count))
    except CollabError:
        return None
    planning, types = candidates.planning, {}
    for name, info in planning.checkpoint.tensors.items():
        if quantizable(info):
            kind = possible(planning, info, rule(info))
            types[name] = kind if bits_per_weight(kind) < bits_per_weight(info.type.name) else info.type.name
    sizes = (size_in_file(planning.checkpoint, candidate.plan, n, k) for n, k in types.items())
    return candidate, types, candidate.fixed + sum(sizes)
