"""What a plan tells about the search: the candidates at the budget, the Pareto front, and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from collab_plugin.planning.allocators.frontier import Frontier
from collab_plugin.planning.baselines import Baseline
from collab_plugin.planning.candidates import Candidate
from collab_plugin.planning.predictor import Predictor
from collab_plugin.plans.plan import Plan, Point, ascending

FRONT_POINTS = 16
FRONT_SPAN = 2.5
"""The front reaches from the smallest file to this many times the budget."""


@dataclass(frozen=True)
class Weighed:
    """A candidate with its frontier of types, and the KL divergence ``score`` predicted at the budget."""

    candidate: Candidate
    front: Frontier
    score: float

    def bytes_at(self, budget: int) -> int:
        """Bytes of the file of the frontier's last whole step within ``budget``."""
        fixed = self.candidate.fixed
        fitting = (size for size in self.front.sizes if size <= budget - fixed)
        return max(fitting, default=self.front.sizes[0]) + fixed

    def cost_at(self, budget: int, predictor: Predictor) -> float:
        """Predicted KL divergence at ``budget``; infinite when not even the smallest choices fit."""
        cost = self.front.cost(budget - self.candidate.fixed)
        return predictor.total(cost, self.candidate.count, self.candidate.used)

    def bound_at(self, budget: int, predictor: Predictor) -> float:
        """What no plan of this candidate within ``budget`` is predicted to cost less than."""
        cost = self.front.bound(budget - self.candidate.fixed)
        return predictor.total(cost, self.candidate.count, self.candidate.used)


def considered_points(
    weighed: Sequence[Weighed], baselines: Sequence[Baseline], predictor: Predictor, theirs: Predictor, budget: int
) -> tuple[Point, ...]:
    """Every candidate at the budget, the front, and the baselines, ascending in bytes. ``theirs``: of the baselines,
    which nobody repairs."""
    points = [_point("candidate", "", w.candidate, w.bytes_at(budget), w.score) for w in weighed]
    points += _front(weighed, predictor, budget)
    points += [
        _point("baseline", b.label, b.candidate, b.bytes, theirs.total(b.cost, b.candidate.count, b.candidate.used))
        for b in baselines
    ]
    return ascending(points)


def _front(weighed: Sequence[Weighed], predictor: Predictor, budget: int) -> list[Point]:
    """The best candidate at each of some budgets, those that a smaller file beats left out."""
    low = min(w.candidate.fixed + w.front.sizes[0] for w in weighed)
    top = FRONT_SPAN * budget
    found: list[Point] = []
    for step in range(FRONT_POINTS):
        at = int(low * (top / low) ** (step / (FRONT_POINTS - 1)))
        cost, index = min((w.cost_at(at, predictor), i) for i, w in enumerate(weighed))
        if found and cost >= found[-1].predicted_kld:
            continue
        best = weighed[index]
        found.append(_point("front", "", best.candidate, best.bytes_at(at), cost))
    return found


def _point(
    kind: Literal["candidate", "front", "baseline"], label: str, candidate: Candidate, size: int, cost: float
) -> Point:
    return Point(kind, label, candidate.count, candidate.used, size, cost, None, False)


def chosen(considered: Sequence[Point], plan: Plan) -> tuple[Point, ...]:
    """Mark the candidate that ``plan`` is, with the bytes and KL divergence that its allocation has."""
    key = (plan.pruning.expert_count, plan.activation.used)
    return ascending(
        replace(p, chosen=True, bytes=plan.bytes, predicted_kld=plan.predicted_kld or 0.0)
        if p.kind == "candidate" and (p.expert_count, p.experts_used) == key
        else p
        for p in considered
    )
