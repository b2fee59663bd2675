"""Rivals by rule: the paper's recipe and its release, one type for all, pruning alone."""

from __future__ import annotations

from collections.abc import Callable

import collab_plugin as cp
from benchmarks.quality.bench import Bench, Row
from benchmarks.quality.presets import budget_of
from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.pruning import parse_keep
from collab_plugin.planning.type_choices import possible

# The release's ladder: one type up at the ends, one down in the middle (docs/sources.md, Release).
LADDER = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q5_K", "Q6_K")


def recipe(keep: str, *, scaled: bool) -> Callable[[Bench, str, float], list[Row]]:
    """The release's types at the largest base that fits, over ``keep`` of the experts by the paper's importance.

    With 75 % and k scaled it is what the paper describes; its published files of a type keep all experts.
    """

    def make(bench: Bench, variant: str, bpw: float) -> list[Row]:
        for base in reversed(range(len(LADDER) - 1)):
            made = _ruled(
                bench, variant, bpw, f"base {LADDER[base]}", keep, scaled, lambda f, n, b=base: _depth(f, n, b)
            )
            if made:
                return made
        return []

    return make


def _depth(planning: PlanningInput, name: str, base: int) -> str:
    info = planning.checkpoint.tensors[name]
    blocks = planning.topology.block_count
    ends = max(1, blocks // 8)
    if info.role == Role.EXPERT:
        at_end = info.layer is not None and (info.layer < ends or info.layer >= blocks - ends)
        return LADDER[base + 1] if at_end else LADDER[max(base - 1, 0)]
    if info.role == Role.ATTENTION:
        return "Q4_K"
    return {Role.SHARED_EXPERT: "Q6_K", Role.EMBEDDING: "Q2_K", Role.OUTPUT: "Q5_K"}.get(info.role, "Q4_K")


def pruning_only(bench: Bench, variant: str, bpw: float) -> list[Row]:
    """Q8_0, as many experts as fit, k scaled with them."""
    t = bench.topology
    for count in range(t.expert_count, 0, -t.groups):
        made = _ruled(bench, variant, bpw, "Q8_0", str(count), True, lambda f, n: "Q8_0")
        if made:
            return made
    return []


def _ruled(
    bench: Bench, variant: str, bpw: float, detail: str, keep: str, scaled: bool, rule: Callable[..., str]
) -> list[Row]:
    candidates = Candidates(bench.planning(None, keep=keep))
    try:
        count = parse_keep(keep, bench.topology, candidates.planning.policy)
        used = candidates.scaled(count) if scaled else bench.topology.experts_used
        candidate = candidates.candidate(count, used)
    except cp.CollabError:
        return []
    plan = candidates.finish(candidate, _types(candidates.planning, rule), {})
    if plan.bytes > budget_of(bench, bpw):
        return []
    told = f"{detail}, {count} experts, top-{used}"
    return [bench.built(f"rule {variant} {told} {bpw}", variant, bpw, told, plan, rival=True)]


def _types(planning: PlanningInput, rule: Callable[..., str]) -> dict[str, str]:
    found = {}
    for name, info in planning.checkpoint.tensors.items():
        if quantizable(info):
            kind = possible(planning, info, rule(planning, name))
            found[name] = kind if bits_per_weight(kind) < bits_per_weight(info.type.name) else info.type.name
    return found
