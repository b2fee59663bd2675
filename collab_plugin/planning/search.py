"""Make a plan: which experts stay, how many a token uses and the type of every tensor, chosen together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from collab_plugin.checkpoint.checkpoint import Checkpoint, quantizable
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.allocators.allocator import Choice, Item
from collab_plugin.planning.allocators.frontier import Frontier, frontier
from collab_plugin.planning.allocators.knapsack import KNAPSACK
from collab_plugin.planning.back_off import Limits, next_limits
from collab_plugin.planning.baselines import baselines
from collab_plugin.planning.candidates import Frame, Frames, Types
from collab_plugin.planning.pruning import check_enough, check_servable, parse_keep
from collab_plugin.planning.request import PlanRequest, StatsSource, of_model
from collab_plugin.planning.sensitivity import (
    Sensitivity,
    default_prune_cost,
    default_weights,
    probed_prune_cost,
    probed_weights,
)
from collab_plugin.plans.plan import BackOff, Plan, Point, ascending
from collab_plugin.progress import Advance
from collab_plugin.quantize.error import ErrorTable
from collab_plugin.quantize.kernels import Kernels

CLOSE = 3
NEAR = 1.05
"""Candidates whose frontiers are so close are told apart by solving them: a step of few large tensors
can be that large."""
FRONT_POINTS = 16
FRONT_SPAN = 2.5
"""The front reaches from the smallest file to this many times the budget."""


@dataclass(frozen=True)
class _Fitted:
    """A frame whose smallest choices hold the budget, and what was relaxed for it."""

    frame: Frame
    choices: Types
    steps: tuple[BackOff, ...]


def make_plan(
    checkpoint: Checkpoint,
    topology: Topology,
    source: StatsSource | None,
    request: PlanRequest,
    kernels: Kernels | None,
    report: Advance,
) -> Plan:
    """Return the plan with the least predicted KL divergence that holds ``request.budget``.

    Raises CollabError when the request contradicts itself, the stats are not of this model, or no plan
    within the rules holds the budget (the smallest that would is named).
    """
    return make_plans(checkpoint, topology, source, request, kernels, report, 1)[0]


def make_plans(
    checkpoint: Checkpoint,
    topology: Topology,
    source: StatsSource | None,
    request: PlanRequest,
    kernels: Kernels | None,
    report: Advance,
    count: int,
) -> tuple[Plan, ...]:
    """The ``count`` best plans (fewer when there are no more), each of other experts or top-k, best first."""
    source = of_model(checkpoint, source)
    frames = Frames(checkpoint, topology, source, request, kernels)
    if request.keep_types:
        return (_keep_types(frames),)
    if kernels is None:
        raise CollabError("no quantization kernels: pip install 'collab-plugin[llamacpp]'")
    return _Search(frames, kernels, request.needed_budget(), report).best(count)


def _keep_types(frames: Frames) -> Plan:
    """Prune and reorder only: every tensor keeps its stored type, byte for byte."""
    request, topology = frames.request, frames.topology
    keep = topology.expert_count if request.keep == "auto" else parse_keep(request.keep, topology, frames.policy)
    used = request.experts_used if isinstance(request.experts_used, int) else frames.scaled(keep)
    plan = frames.finish(frames.frame(keep, used), {}, {})
    if request.budget is not None and plan.bytes > request.budget:
        raise CollabError(
            f"with --keep-types the file takes {plan.bytes:,} bytes, the budget is {request.budget:,}; "
            "keep fewer experts or raise the budget"
        )
    return plan


def notches(frames: Frames) -> list[int]:
    """Counts that the search weighs: all experts, then a sixteenth fewer each (whole groups), down to half."""
    t = frames.topology
    step = max(t.expert_count // 16, 1)
    if frames.policy == "balanced":
        step = -(-step // t.groups) * t.groups
    return list(range(t.expert_count, (t.expert_count - 1) // 2, -step))


def options(frames: Frames) -> list[tuple[int, int]]:
    """(experts kept, experts used) that the request leaves open, all experts first; at least one.

    Raises CollabError when no count can serve the experts a token that were asked for.
    """
    t, request, source = frames.topology, frames.request, frames.source
    if request.keep != "auto":
        counts = [parse_keep(request.keep, t, frames.policy)]
    elif source is None or not set(t.moe_layers) <= set(source.stats.routing):
        counts = [t.expert_count]
    else:
        counts = notches(frames)
    found = []
    for count in counts:
        if isinstance(request.experts_used, int):
            used = [request.experts_used]
        elif request.experts_used == "auto":
            used = sorted({frames.scaled(count), t.experts_used}, reverse=True)
        else:
            used = [frames.scaled(count)]
        found += [(count, k) for k in used if len(counts) == 1 or frames.servable(count, k)]
    if not found:
        check_servable(t, counts[0], used[0], frames.policy)
    return found


def sensitivity_of(frames: Frames) -> Sensitivity:
    """From the probes in the stats where there are any, else from models probed earlier."""
    default = default_weights(frames.checkpoint, frames.topology)

    def lost(count: int, used: int) -> Mapping[int, float]:
        return frames.choice(count, used).weight_lost

    guess = default_prune_cost(frames.checkpoint, frames.topology, default, lost)
    probes = frames.source.stats.probes if frames.source else None
    if probes is None or not (probes.types or probes.prunes):
        return Sensitivity(
            default, guess, "defaults learnt on two small models: order of magnitude only (--probe measures it)"
        )
    weights = probed_weights(default, probes)
    prunes = tuple(p for p in probes.prunes if p.rule == frames.rule)
    prune = probed_prune_cost(
        default_prune_cost(frames.checkpoint, frames.topology, weights, lost), prunes, frames.topology.expert_count
    )
    seen = {n for p in probes.types for n in p.types}
    return Sensitivity(
        weights,
        prune,
        f"probed: {len(probes.types)} groups ({len(seen)} of {len(default)} tensors) and {len(prunes)} prunings "
        f"on {probes.tokens:,} tokens",
    )


class _Search:
    def __init__(self, frames: Frames, kernels: Kernels, budget: int, report: Advance) -> None:
        self.frames, self.budget = frames, budget
        self.sensitivity = sensitivity_of(frames)
        self.fitted = self._fit_all()
        request, stats = frames.request, frames.source.stats if frames.source else None
        # One sample for all candidates; the same as with --keep for the one that keeps most.
        most = max(self.fitted, key=lambda f: f.frame.count).frame
        self.errors = ErrorTable(frames.checkpoint, most.plan.pruning.kept, stats, kernels, request.threads, report)

    def best(self, count: int) -> tuple[Plan, ...]:
        self.errors.measure(_union([f.choices for f in self.fitted]))
        fronts = [frontier(self._items(f)) for f in self.fitted]
        scores = self._scores(fronts)
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        plans = [self._allocate(self.fitted[i]) for i in self._worth_solving(order, scores, count)]
        plans = sorted(plans, key=lambda plan: plan.predicted_kld or 0.0)[:count]
        considered = self._points(fronts, scores) if len(self.fitted) > 1 else ()
        return tuple(dataclasses.replace(plan, considered=chosen(considered, plan)) for plan in plans)

    def _scores(self, fronts: Sequence[Frontier]) -> list[float]:
        """Predicted KL divergence of each candidate at the budget: of the frontier for the knapsack, which
        is within one step of it; what another allocator really makes for that one."""
        if self.frames.request.allocator.name != KNAPSACK.name:
            return [self._allocate(f).predicted_kld or 0.0 for f in self.fitted]
        return [
            front.cost(self.budget - f.frame.fixed) + self._prune_cost(f.frame)
            for f, front in zip(self.fitted, fronts, strict=True)
        ]

    def _worth_solving(self, order: Sequence[int], scores: Sequence[float], count: int) -> list[int]:
        """The first ``count``, and up to three that are within a step of the frontier of the best."""
        near = [i for i in order[:CLOSE] if scores[i] <= NEAR * scores[order[0]]]
        return list(order[: max(count, len(near))])

    # -- which candidates hold the budget

    def _fit_all(self) -> list[_Fitted]:
        frames, request = self.frames, self.frames.request
        found: list[_Fitted] = []
        failed: list[tuple[int, int]] = []
        thin: CollabError | None = None
        for count, used in options(frames):
            if count < frames.topology.expert_count and request.keep == "auto" and not request.allow_few_tokens:
                assert frames.source is not None  # options() prunes on its own only with statistics
                try:
                    check_enough(frames.source.stats.routing, frames.topology)
                except CollabError as error:
                    thin = error
                    break
            frame = frames.frame(count, used)
            fitted, smallest = self._fit(frame)
            if fitted:
                found.append(fitted)
            failed.append((smallest, count))
        if found:
            return found
        if thin is not None:
            raise thin
        smallest, count = min(failed)
        why = f"with --keep {request.keep}" if request.keep != "auto" else f"with {count} experts a layer"
        raise CollabError(
            f"no plan holds {self.budget:,} bytes: the smallest {why} takes {smallest:,} bytes; "
            f"raise --budget to that{' or lower --keep' if request.keep != 'auto' else ''}"
            f"{' or --base' if request.base else ''}"
        )

    def _fit(self, frame: Frame) -> tuple[_Fitted | None, int]:
        """Relax limits until the smallest choices hold the budget; also the smallest bytes reached."""
        request = self.frames.request
        limits = Limits.start(
            request.base,
            request.floors,
            request.ceilings,
            guarded=() if request.allocator.name == "uniform" else self._unprobed,
        )
        steps: list[BackOff] = []
        while True:
            choices = self.frames.choices(limits)
            smallest = self.frames.smallest(frame, choices)
            if steps:
                steps[-1] = dataclasses.replace(steps[-1], smallest_bytes=smallest)
            if smallest <= self.budget:
                return _Fitted(frame, choices, tuple(steps)), smallest
            relaxed = next_limits(limits)
            if relaxed is None:
                return None, smallest
            limits, step = relaxed
            steps.append(BackOff(step, 0))

    @cached_property
    def _unprobed(self) -> frozenset[Role]:
        """Roles with a tensor that was not probed: their default floors stand."""
        probes = self.frames.source.stats.probes if self.frames.source else None
        seen = {name for p in probes.types for name in p.types} if probes else set()
        return frozenset(i.role for n, i in self.frames.checkpoint.tensors.items() if quantizable(i) and n not in seen)

    # -- what they cost

    def _items(self, fitted: _Fitted) -> list[Item]:
        return [
            Item(name, tuple(self._choice(fitted.frame, name, kind) for kind in kinds))
            for name, kinds in fitted.choices.items()
        ]

    def _choice(self, frame: Frame, name: str, kind: str) -> Choice:
        harm = self.sensitivity.weights[name] * self.errors.errors[name][kind]
        return Choice(kind, self.frames.size(frame.plan, name, kind), harm)

    def _prune_cost(self, frame: Frame) -> float:
        return self.sensitivity.prune(frame.count, frame.used)

    def _allocate(self, fitted: _Fitted) -> Plan:
        request, frame = self.frames.request, fitted.frame
        items = self._items(fitted)
        try:
            picked = request.allocator.solve(items, self.budget - frame.fixed)
        except ValueError as error:
            raise CollabError(f"allocator {request.allocator.name}: {error}; raise --budget") from None
        types = {item.name: item.choices[picked[item.name]].type for item in items}
        cost = sum(item.choices[picked[item.name]].cost for item in items)
        plan = dataclasses.replace(
            self.frames.finish(frame, types, self.errors.errors),
            predicted_kld=cost + self._prune_cost(frame),
            sensitivity=self.sensitivity.source,
            back_off=fitted.steps,
        )
        if plan.bytes > self.budget:
            raise AssertionError(f"allocator {plan.allocator} went over the budget: {plan.bytes} > {self.budget}")
        return plan

    # -- what the plan tells about the search

    def _points(self, fronts: Sequence[Frontier], scores: Sequence[float]) -> tuple[Point, ...]:
        points = [
            self._point("candidate", "", f.frame, _at(front, self.budget - f.frame.fixed) + f.frame.fixed, score)
            for f, front, score in zip(self.fitted, fronts, scores, strict=True)
        ]
        points += self._front(fronts)
        points += [
            self._point("baseline", b.label, b.frame, b.bytes, b.cost + self._prune_cost(b.frame))
            for b in baselines(self.frames, self.errors, self.sensitivity, self.budget)
        ]
        return ascending(points)

    def _front(self, fronts: Sequence[Frontier]) -> list[Point]:
        """The best candidate at each of some budgets, those that a smaller file beats left out."""
        low = min(f.frame.fixed + front.sizes[0] for f, front in zip(self.fitted, fronts, strict=True))
        top = FRONT_SPAN * self.budget
        budgets = [int(low * (top / low) ** (i / (FRONT_POINTS - 1))) for i in range(FRONT_POINTS)]
        found: list[Point] = []
        for budget in budgets:
            at = [
                (front.cost(budget - f.frame.fixed) + self._prune_cost(f.frame), i)
                for i, (f, front) in enumerate(zip(self.fitted, fronts, strict=True))
            ]
            cost, i = min(at)
            if found and cost >= found[-1].predicted_kld:
                continue
            f, front = self.fitted[i], fronts[i]
            size = _at(front, budget - f.frame.fixed) + f.frame.fixed
            found.append(self._point("front", "", f.frame, size, cost))
        return found

    def _point(self, kind: str, label: str, frame: Frame, size: int, cost: float) -> Point:
        return Point(kind, label, frame.count, frame.used, size, cost, None, False)  # type: ignore[arg-type]  # a literal


def chosen(considered: Sequence[Point], plan: Plan) -> tuple[Point, ...]:
    """Mark the candidate that ``plan`` is, with the bytes and KL divergence that its allocation has."""
    key = (plan.pruning.expert_count, plan.activation.used)
    return ascending(
        dataclasses.replace(p, chosen=True, bytes=plan.bytes, predicted_kld=plan.predicted_kld or 0.0)
        if p.kind == "candidate" and (p.expert_count, p.experts_used) == key
        else p
        for p in considered
    )


def _at(front: Frontier, budget: int) -> int:
    """Bytes of the frontier's last whole step within ``budget``."""
    return max((size for size in front.sizes if size <= budget), default=front.sizes[0])


def _union(choices: Sequence[Types]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for types in choices:
        for name, kinds in types.items():
            found.setdefault(name, {}).update(dict.fromkeys(kinds))
    return {name: tuple(kinds) for name, kinds in found.items()}
