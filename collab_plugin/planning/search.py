"""Make a plan: which experts stay, how many a token uses and the type of every tensor, chosen together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from collab_plugin.errors import CollabError
from collab_plugin.formats.user_folders import cache_path
from collab_plugin.planning.allocators.allocator import Choice, Item
from collab_plugin.planning.allocators.frontier import Frontier, frontier
from collab_plugin.planning.baselines import baselines
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.considered import Weighed, chosen, considered_points
from collab_plugin.planning.costs import Costs
from collab_plugin.planning.fit import Fitted, fit_all
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.predictor import predictor_of
from collab_plugin.planning.pruning import parse_keep
from collab_plugin.planning.repaired_errors import RepairedErrors, repaired_errors
from collab_plugin.planning.search_space import counts_to_weigh
from collab_plugin.planning.type_choices import sizes_in_file
from collab_plugin.plans.plan import Plan, Point
from collab_plugin.progress import Advance, untold
from collab_plugin.quantize.error import ErrorTable
from collab_plugin.quantize.known_errors import KnownErrors


def make_plan(planning: PlanningInput, report: Advance = untold) -> Plan:
    """Return the plan with the least predicted KL divergence that holds the request's budget.

    Raises CollabError when the request contradicts itself or no plan within the rules holds the budget (the
    smallest that would is named).
    """
    return make_plans(planning, 1, report)[0]


def make_plans(
    planning: PlanningInput,
    count: int,
    report: Advance = untold,
    errors: ErrorTable | None = None,
    repaired: RepairedErrors | None = None,
) -> tuple[Plan, ...]:
    """The ``count`` best plans (fewer when there are no more), each of other experts or top-k, best first.

    ``errors``: those of the same model and stats (`error_table`), so that plans for many budgets measure them once;
    ``repaired``: likewise, with the same samples (`repaired_errors`).
    """
    candidates = Candidates(planning)
    if planning.request.keep_types:
        return (_keep_types(candidates),)
    budget = planning.request.needed_budget()
    repaired = repaired or repaired_errors(planning)
    return _Search(candidates, budget, errors or error_table(planning, report), repaired).best(count)


def error_table(planning: PlanningInput, report: Advance = untold) -> ErrorTable:
    """Errors for all candidates and all budgets: measured on the experts that the largest candidate keeps."""
    candidates = Candidates(planning)
    most = candidates.candidate(*counts_to_weigh(planning)[0]).plan.pruning.kept
    kernels = planning.needed_kernels()
    known = KnownErrors(cache_path() / "errors.sqlite")
    return ErrorTable(
        planning.checkpoint, most, planning.imatrix, kernels, planning.request.threads, report, known=known
    )


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
    def __init__(self, candidates: Candidates, budget: int, errors: ErrorTable, repaired: RepairedErrors) -> None:
        self.candidates, self.planning, self.budget, self.errors = candidates, candidates.planning, budget, errors
        self.repaired = repaired
        self.predictor = predictor_of(candidates, repaired)
        rounding = self.planning.stats.rounding if self.planning.stats else {}
        self.costs = Costs(self.predictor.weights, self.planning.checkpoint.tensors, rounding, repaired)
        self.fitted = fit_all(candidates, budget)

    def best(self, count: int) -> tuple[Plan, ...]:
        self.errors.measure(self.fitted[0].choices)  # the same for all
        weighed = [self._weigh(f, frontier(self._items(f))) for f in self.fitted]
        plans = self._solved(weighed, count)
        points: tuple[Point, ...] = ()
        if len(weighed) > 1:
            rules = baselines(self.candidates, self.errors, self.costs.without_repair(), self.budget)
            theirs = predictor_of(self.candidates)
            points = considered_points(weighed, rules, self.predictor, theirs, self.budget)
        return tuple(dataclasses.replace(plan, considered=chosen(points, plan)) for plan in plans)

    def _weigh(self, fitted: Fitted, front: Frontier) -> Weighed:
        """The predicted KL divergence at the budget is the frontier's where the allocator follows it, which it
        does within one step, and else what the allocator really makes."""
        candidate = fitted.candidate
        if self.planning.request.allocator.follows_frontier:
            cost = front.cost(self.budget - candidate.fixed)
            score = self.predictor.total(cost, candidate.count, candidate.used)
        else:
            score = self._allocate(fitted).predicted_kld or 0.0
        return Weighed(candidate, front, score)

    def _solved(self, weighed: Sequence[Weighed], count: int) -> list[Plan]:
        """The best ``count`` plans: candidates are solved until what is left cannot be better."""
        bounds = [w.bound_at(self.budget, self.predictor) for w in weighed]
        if not self.planning.request.allocator.follows_frontier:
            bounds = [w.score for w in weighed]
        plans: list[Plan] = []
        for index in sorted(range(len(weighed)), key=bounds.__getitem__):
            if len(plans) == count and bounds[index] >= (plans[-1].predicted_kld or 0.0):
                break
            plans = sorted([*plans, self._allocate(self.fitted[index])], key=lambda plan: plan.predicted_kld or 0.0)
            plans = plans[:count]
        return plans

    def _items(self, fitted: Fitted) -> list[Item]:
        checkpoint, plan = self.planning.checkpoint, fitted.candidate.plan
        items = []
        for name, kinds in fitted.choices.items():
            errors = self.errors.errors[name]
            sizes = zip(kinds, sizes_in_file(checkpoint, plan, name, kinds), strict=True)
            items.append(Item(name, tuple(Choice(k, size, self.costs.of(name, k, errors[k])) for k, size in sizes)))
        return items

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
            predicted_kld=self.predictor.total(cost, candidate.count, candidate.used),
            prediction="; ".join(s for s in (self.predictor.source, self.repaired.source) if s),
        )
        if plan.bytes > self.budget:
            raise AssertionError(f"allocator {plan.allocator} went over the budget: {plan.bytes} > {self.budget}")
        return plan
