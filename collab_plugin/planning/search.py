"""Make a plan: which experts stay, how many a token uses and the type of every tensor, chosen together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from collab_plugin.errors import CollabError
from collab_plugin.planning.allocators.allocator import Choice, Item
from collab_plugin.planning.allocators.frontier import Frontier, frontier
from collab_plugin.planning.baselines import baselines
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.considered import Weighed, chosen, considered_points
from collab_plugin.planning.fit import Fitted, fit_all
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.predictor import predictor_of
from collab_plugin.planning.pruning import parse_keep
from collab_plugin.planning.type_choices import size_in_file, union
from collab_plugin.plans.plan import Plan, Point
from collab_plugin.progress import Advance, untold
from collab_plugin.quantize.error import ErrorTable

CLOSE = 3
NEAR = 1.05
"""Candidates whose frontiers are so close are told apart by solving them: a step of few large tensors
can be that large."""


def make_plan(planning: PlanningInput, report: Advance = untold) -> Plan:
    """Return the plan with the least predicted KL divergence that holds the request's budget.

    Raises CollabError when the request contradicts itself or no plan within the rules holds the budget (the
    smallest that would is named).
    """
    return make_plans(planning, 1, report)[0]


def make_plans(planning: PlanningInput, count: int, report: Advance = untold) -> tuple[Plan, ...]:
    """The ``count`` best plans (fewer when there are no more), each of other experts or top-k, best first."""
    candidates = Candidates(planning)
    if planning.request.keep_types:
        return (_keep_types(candidates),)
    return _Search(candidates, planning.request.needed_budget(), report).best(count)


def _keep_types(candidates: Candidates) -> Plan:
    """Prune and reorder only: every tensor keeps its stored type, byte for byte."""
    planning, request, t = candidates.planning, candidates.planning.request, candidates.planning.topology
    keep = t.expert_count if request.keep == "auto" else parse_keep(request.keep, t, planning.policy)
    used = request.experts_used if isinstance(request.experts_used, int) else candidates.scaled(keep)
    plan = candidates.finish(candidates.candidate(keep, used), {}, {})
    if request.budget is not None and plan.bytes > request.budget:
        raise CollabError(
            f"with `keep_types` the file takes {plan.bytes:,} bytes, the budget is {request.budget:,}; "
            "keep fewer experts or raise the budget"
        )
    return plan


class _Search:
    def __init__(self, candidates: Candidates, budget: int, report: Advance) -> None:
        planning = candidates.planning
        self.candidates, self.planning, self.budget = candidates, planning, budget
        kernels = planning.needed_kernels()
        self.predictor = predictor_of(candidates)
        self.fitted = fit_all(candidates, budget)
        # One sample for all candidates; the same as with --keep for the one that keeps most.
        most = max(self.fitted, key=lambda f: f.candidate.count).candidate
        self.errors = ErrorTable(
            planning.checkpoint, most.plan.pruning.kept, planning.imatrix, kernels, planning.request.threads, report
        )

    def best(self, count: int) -> tuple[Plan, ...]:
        self.errors.measure(union([f.choices for f in self.fitted]))
        weighed = [self._weigh(f, frontier(self._items(f))) for f in self.fitted]
        plans = [self._allocate(self.fitted[i]) for i in self._worth_solving(weighed, count)]
        plans = sorted(plans, key=lambda plan: plan.predicted_kld or 0.0)[:count]
        points: tuple[Point, ...] = ()
        if len(weighed) > 1:
            rules = baselines(self.candidates, self.errors, self.predictor.weights, self.budget)
            points = considered_points(weighed, rules, self.predictor.prune, self.budget)
        return tuple(dataclasses.replace(plan, considered=chosen(points, plan)) for plan in plans)

    def _weigh(self, fitted: Fitted, front: Frontier) -> Weighed:
        """The predicted KL divergence at the budget is the frontier's where the allocator follows it, which it
        does within one step, and else what the allocator really makes."""
        candidate = fitted.candidate
        if self.planning.request.allocator.follows_frontier:
            score = front.cost(self.budget - candidate.fixed) + self.predictor.prune(candidate.count, candidate.used)
        else:
            score = self._allocate(fitted).predicted_kld or 0.0
        return Weighed(candidate, front, score)

    def _worth_solving(self, weighed: Sequence[Weighed], count: int) -> list[int]:
        """The first ``count``, and up to three that are within a step of the frontier of the best."""
        order = sorted(range(len(weighed)), key=lambda i: weighed[i].score)
        near = [i for i in order[:CLOSE] if weighed[i].score <= NEAR * weighed[order[0]].score]
        return order[: max(count, len(near))]

    def _items(self, fitted: Fitted) -> list[Item]:
        return [
            Item(name, tuple(self._choice(fitted, name, kind) for kind in kinds))
            for name, kinds in fitted.choices.items()
        ]

    def _choice(self, fitted: Fitted, name: str, kind: str) -> Choice:
        harm = self.predictor.weights[name] * self.errors.errors[name][kind]
        return Choice(kind, size_in_file(self.planning.checkpoint, fitted.candidate.plan, name, kind), harm)

    def _allocate(self, fitted: Fitted) -> Plan:
        allocator, candidate = self.planning.request.allocator, fitted.candidate
        items = self._items(fitted)
        try:
            picked = allocator.solve(items, self.budget - candidate.fixed, self.planning.allocator_options)
        except ValueError as error:
            raise CollabError(f"allocator {allocator.name}: {error}; raise `budget`") from None
        types = {item.name: item.choices[picked[item.name]].type for item in items}
        cost = sum(item.choices[picked[item.name]].cost for item in items)
        plan = dataclasses.replace(
            self.candidates.finish(candidate, types, self.errors.errors),
            predicted_kld=cost + self.predictor.prune(candidate.count, candidate.used),
            prediction=self.predictor.source,
            back_off=fitted.steps,
        )
        if plan.bytes > self.budget:
            raise AssertionError(f"allocator {plan.allocator} went over the budget: {plan.bytes} > {self.budget}")
        return plan
