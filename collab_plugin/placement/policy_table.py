"""What each placement policy gives: hit rate, what moves, and the speed that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collab_plugin.placement.place_experts import most_experts
from collab_plugin.placement.policy import LayerUse, PlacementPolicy, ranked_experts, rooms_of
from collab_plugin.placement.simulate import OPTIMUM, best_possible, replay
from collab_plugin.stats.routing_trace import RoutingTrace

SeenOn = Literal["trace", "stats"]
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class PolicyRow:
    """``hits``: share of all choices that the first tier serves, seen on a trace or expected by the stats; ``moved``:
    experts brought in for each token. None: cannot be run there. ``room``: experts in the first tier, in all layers."""

    policy: str
    dynamic: bool
    selective: bool
    room: int
    hits: float | None
    moved: float | None
    seen_on: SeenOn


def policy_rows(
    policies: Sequence[PlacementPolicy],
    uses: Sequence[LayerUse],
    sizes: Mapping[int, int],
    room: int | None,
    trace: RoutingTrace | None,
) -> list[PolicyRow]:
    """One a policy, and the optimum where there is a trace; the best first. ``room``: bytes for experts."""
    rows, even = [], None
    for policy in policies:
        total = most_experts(policy, uses, sizes, room)
        if trace is None:
            hits, moved = (None, None) if policy.dynamic else (expected_hits(policy, uses, total), 0.0)
        elif must_hold_all(policy) and min(rooms_of(policy, uses, total)) < trace.chosen.shape[2]:
            hits, moved = None, None
        else:
            (found,) = replay(trace, policy, [total], uses)
            hits, moved = found.hit_rate, found.moved / trace.tokens
        rows.append(
            PolicyRow(
                policy.name,
                policy.dynamic is not None,
                policy.selective,
                total,
                hits,
                moved,
                "stats" if trace is None else "trace",
            )
        )
        if policy.rooms is None:
            even = total
    if trace is not None and even is not None and even // len(uses) >= trace.chosen.shape[2]:
        (found,) = best_possible(trace, [even], filled=True)
        rows.append(PolicyRow(OPTIMUM, True, False, even, found.hit_rate, found.moved / trace.tokens, "trace"))
    return sorted(rows, key=lambda row: -1.0 if row.hits is None else row.hits, reverse=True)


def must_hold_all(policy: PlacementPolicy) -> bool:
    """Whether a layer's room must hold all that a token uses: what is missing is always brought in."""
    return policy.dynamic is not None and not policy.selective


def expected_hits(policy: PlacementPolicy, uses: Sequence[LayerUse], total: int) -> float:
    """Share of choices that fall on the policy's experts if they fall as the statistics say; layers count alike."""
    rooms = rooms_of(policy, uses, total)
    return float(np.mean([u.heat[ranked_experts(policy, u, n)].sum() for u, n in zip(uses, rooms, strict=True)]))


@dataclass(frozen=True)
class HitCurve:
    """Hit rate of a policy by share of all experts in the first tier; None where a dynamic policy has no room."""

    policy: str
    shares: tuple[float, ...]
    hits: tuple[float | None, ...]


def hit_curves(
    policies: Sequence[PlacementPolicy],
    uses: Sequence[LayerUse],
    trace: RoutingTrace,
    shares: Sequence[float] = SHARES,
) -> list[HitCurve]:
    """One a policy, and the optimum's, on ``trace``."""
    totals = [round(share * sum(use.experts for use in uses)) for share in shares]
    least = trace.chosen.shape[2] * len(uses)
    curves = []
    for policy in policies:
        able = [total for total in totals if not must_hold_all(policy) or total >= least]
        found = dict(zip(able, (r.hit_rate for r in replay(trace, policy, able, uses)), strict=True)) if able else {}
        curves.append(HitCurve(policy.name, tuple(shares), tuple(found.get(total) for total in totals)))
    able = [total for total in totals if total >= least]
    best = dict(zip(able, (r.hit_rate for r in best_possible(trace, able, filled=True)), strict=True)) if able else {}
    return [*curves, HitCurve(OPTIMUM, tuple(shares), tuple(best.get(total) for total in totals))]
