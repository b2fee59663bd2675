"""What differs between two plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint


@dataclass(frozen=True)
class Pair:
    """A value in plan A and in plan B (None: absent)."""

    a: str | int | float | None
    b: str | int | float | None


@dataclass(frozen=True)
class PlanDiff:
    """``values``: differing figures by name. ``types``: differing tensor types. ``kept_only_in_a``, ``_b``:
    expert ids by layer that one plan keeps and the other drops."""

    values: dict[str, Pair]
    types: dict[str, Pair]
    kept_only_in_a: dict[int, tuple[int, ...]]
    kept_only_in_b: dict[int, tuple[int, ...]]


def diff_plans(a: Plan, b: Plan) -> PlanDiff:
    """Compare two plans; nothing in the result means that they make the same file."""
    pairs = {
        "fingerprint": Pair(plan_fingerprint(a), plan_fingerprint(b)),
        "source": Pair(a.source.fingerprint, b.source.fingerprint),
        "calibration": Pair(_stats(a), _stats(b)),
        "budget": Pair(a.budget, b.budget),
        "bytes": Pair(a.bytes, b.bytes),
        "bits_per_weight": Pair(a.bits_per_weight, b.bits_per_weight),
        "predicted_kld": Pair(a.predicted_kld, b.predicted_kld),
        "requires": Pair(", ".join(a.requires), ", ".join(b.requires)),
        "expert_count": Pair(a.pruning.expert_count, b.pruning.expert_count),
        "experts a layer": Pair(_span(a, b), _span(b, a)),
        "experts_used": Pair(a.activation.used, b.activation.used),
        "criterion": Pair(a.pruning.criterion, b.pruning.criterion),
        "groups": Pair(a.pruning.group_policy, b.pruning.group_policy),
        "options": Pair(_text(a.pruning.options), _text(b.pruning.options)),
        "metadata": Pair(_text(a.metadata), _text(b.metadata)),
        "order of kept experts": Pair(_order(a), _order(b)),
        "mass_lost": Pair(a.pruning.mass_lost, b.pruning.mass_lost),
    }
    types = {}
    for name in {**a.tensors, **b.tensors}:
        pair = Pair(
            a.tensors[name].type if name in a.tensors else None,
            b.tensors[name].type if name in b.tensors else None,
        )
        if pair.a != pair.b:
            types[name] = pair
    return PlanDiff(
        {name: pair for name, pair in pairs.items() if pair.a != pair.b},
        types,
        _only(a, b),
        _only(b, a),
    )


def _only(a: Plan, b: Plan) -> dict[int, tuple[int, ...]]:
    """Experts that ``a`` keeps and ``b`` drops. A plan that lists no layer keeps all of it."""
    only = {}
    for layer in {*a.pruning.kept, *b.pruning.kept}:
        everything = range(max(a.pruning.expert_count, b.pruning.expert_count))
        mine, other = (set(p.pruning.kept.get(layer, everything)) for p in (a, b))
        if mine - other:
            only[layer] = tuple(sorted(mine - other))
    return dict(sorted(only.items()))


def _span(plan: Plan, other: Plan) -> str | None:
    """None where the count says it all."""
    return plan.pruning.span if plan.requires or other.requires else None


def _text(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))


def _order(plan: Plan) -> str:
    ascending = all(list(kept) == sorted(kept) for kept in plan.pruning.kept.values())
    return "original" if ascending else "by importance"


def _stats(plan: Plan) -> str | None:
    return plan.calibration.sha256 if plan.calibration else None
