"""Everything a report shows, gathered once: page, plots, terminal and --json draw on the same document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.placement.artifact_shape import shape_of_plan
from collab_plugin.placement.memory import Memory, memory_of
from collab_plugin.placement.run_setup import DEFAULT_SETUP, RunSetup
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.plans.plan import Plan, Point
from collab_plugin.reports.expert_importance import ImportanceMap, importance_map
from collab_plugin.reports.measured import Measured, Rival, spearman
from collab_plugin.reports.sizes import BitsMap, bits_map, original_experts
from collab_plugin.stats.stats import Stats

OWN = "this plan"


@dataclass(frozen=True)
class PredictedAgainstMeasured:
    """A KL divergence as predicted and as measured, in nats a token. ``chosen``: of the plan itself."""

    label: str
    chosen: bool
    predicted: float
    measured: float


@dataclass(frozen=True)
class Facts:
    """``experts``: a layer's before pruning, None when unknown. ``points``: the plan's `considered`, with the
    plan itself when that has none marked as chosen. ``rank_correlation``: Spearman's, of ``pairs``.
    ``left_out``: what could not be shown and what to give for it, one sentence each."""

    plan: Plan
    experts: int | None
    importance: ImportanceMap | None
    bits: BitsMap
    memory: Memory
    points: tuple[Point, ...]
    rivals: tuple[Rival, ...]
    evaluations: tuple[Measured, ...]
    pairs: tuple[PredictedAgainstMeasured, ...]
    rank_correlation: float | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Extras:
    """What a report may have beside the plan. ``stats_same``: the file is the one that the plan names."""

    stats: Stats | None = None
    stats_same: bool = True
    model: Checkpoint | None = None
    evaluations: tuple[Measured, ...] = ()
    rivals: tuple[Rival, ...] = ()
    setup: RunSetup = DEFAULT_SETUP


def gather(plan: Plan, extras: Extras, criteria: Mapping[str, ImportanceCriterion]) -> Facts:
    """Return the facts; CollabError when the statistics or the model are not of the plan, or its criterion is not
    among those that are installed (``criteria``, by name)."""
    groups = None if extras.model is None else _groups(plan, extras.model)
    importance = importance_map(plan, extras.stats, groups, criteria)
    bits = bits_map(plan)
    metadata = None if extras.model is None else extras.model.metadata
    parts = {part.part: part.bytes for part in bits.by_role}
    memory = memory_of(shape_of_plan(plan, metadata), extras.setup, parts)
    points = _points(plan)
    pairs = _pairs(plan, points, extras.evaluations)
    return Facts(
        plan=plan,
        experts=original_experts(plan) if importance is None else importance.kept.shape[1],
        importance=importance,
        bits=bits,
        memory=memory,
        points=points,
        rivals=extras.rivals,
        evaluations=extras.evaluations,
        pairs=pairs,
        rank_correlation=spearman([(p.predicted, p.measured) for p in pairs]),
        left_out=tuple(_left_out(plan, extras, memory, importance)),
    )


def _groups(plan: Plan, model: Checkpoint) -> int:
    from collab_plugin.checkpoint.topology import topology_of

    if set(model.tensors) != set(plan.tensors) or model.architecture != plan.source.architecture:
        raise CollabError(f"{model.address} is not the plan's model ({plan.source.name}): their tensors differ")
    return topology_of(model).groups


def _points(plan: Plan) -> tuple[Point, ...]:
    if plan.predicted_kld is None or any(point.chosen for point in plan.considered):
        return plan.considered
    count, used = plan.pruning.expert_count, plan.activation.used
    own = Point("candidate", OWN, count, used, plan.bytes, plan.predicted_kld, None, True)
    return tuple(sorted((*plan.considered, own), key=lambda point: point.bytes))


def _pairs(
    plan: Plan, points: Sequence[Point], evaluations: Sequence[Measured]
) -> tuple[PredictedAgainstMeasured, ...]:
    pairs = [
        PredictedAgainstMeasured(name_of(p), p.chosen, p.predicted_kld, p.measured_kld)
        for p in points
        if p.measured_kld is not None
    ]
    if plan.predicted_kld is not None:
        pairs += [
            PredictedAgainstMeasured(f"this plan, {e.file}", True, plan.predicted_kld, e.mean_kld) for e in evaluations
        ]
    return tuple(pairs)


def name_of(point: Point) -> str:
    """What to call a point: its label, or what it keeps."""
    name = point.label or f"keep {point.expert_count}, use {point.experts_used}"
    return f"this plan ({name})" if point.chosen and point.label != OWN else name


def _left_out(plan: Plan, extras: Extras, memory: Memory, importance: ImportanceMap | None) -> list[str]:
    said = []
    if extras.stats is None:
        beside = f" (the plan used {plan.calibration.file})" if plan.calibration else ""
        said.append(f"How important each expert is: give the statistics{beside}.")
    elif not extras.stats_same:
        said.append("The stats file differs from the one that the plan was made with: importance may differ too.")
    if importance is None:
        said.append(
            "Which experts were dropped: sizes in the plan do not tell how many there were; give the statistics."
        )
    said += [
        f"{part.name.capitalize()}: {part.how.removeprefix('left out: ')}."
        for part in memory.runtime
        if part.bytes is None
    ]
    if extras.model is None and plan.pruning.group_policy != "none":
        said.append("The router's expert groups: give the model.")
    if not plan.considered:
        said.append("Alternatives: this plan was made without comparing any.")
    if not plan.requires and not extras.evaluations and not any(p.measured_kld is not None for p in plan.considered):
        said.append("Measured quality: compress, evaluate, and give the evaluation.")
    return said


def stats_beside(plan: Plan, folder: Path) -> Path | None:
    """The plan's own stats file, when it lies in ``folder``. No other place is looked at."""
    if plan.calibration is None or not plan.calibration.file:
        return None
    path = folder / plan.calibration.file
    return path if path.is_file() else None
