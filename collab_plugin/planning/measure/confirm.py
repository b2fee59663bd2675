"""Build the best few plans, measure them, and keep the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from collab_plugin.compression.as_gguf import runnable
from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.planning.measure.cluster_worker import on_shared
from collab_plugin.planning.measure.measuring import Measuring
from collab_plugin.planning.measure.plan_trial import PlanTrial
from collab_plugin.planning.measure.plans_on_cluster import ClusterPlans, measured_on, reference_on
from collab_plugin.planning.measure.scratch_folder import scratch_folder
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.plans.plan import Plan, Point, ascending
from collab_plugin.progress import OnProgress, silent, track


def confirm_plans(
    plans: Sequence[Plan], planning: PlanningInput, measuring: Measuring, progress: OnProgress = silent
) -> Plan:
    """Return the plan with the least measured KL divergence; its ``considered`` holds every measurement.

    The user's cache folder needs room for one artifact and the original's logits; where `Measuring.workers` measure, it
    lies on storage that all of them see, and needs room for an artifact of each.
    """
    original = runnable(measuring.engine, "reference", planning.checkpoint, planning.request.threads, progress)
    with scratch_folder() as folder:
        if measuring.workers is None:
            figures = _measured_here(plans, planning, measuring, original, folder, progress)
        else:
            figures = _measured_there(plans, planning, measuring, measuring.workers, original, folder, progress)
    measured = {_key(plan): figure for plan, figure in zip(plans, figures, strict=True)}
    best = min(plans, key=lambda plan: measured[_key(plan)])
    by_plan = {_key(plan): plan for plan in plans}
    considered = best.considered or (_point(best),)
    return dataclasses.replace(
        best, considered=ascending(_with_measurement(p, by_plan, measured, _key(best)) for p in considered)
    )


def _measured_here(
    plans: Sequence[Plan],
    planning: PlanningInput,
    measuring: Measuring,
    original: Path,
    folder: Path,
    progress: OnProgress,
) -> list[float]:
    trial = PlanTrial(
        planning.checkpoint,
        planning.stats,
        planning.samples_source.samples if planning.samples_source else None,
        planning.needed_kernels(),
        measuring.engine,
        measuring.windows,
        folder / "reference.npy",
        planning.request.threads,
    )
    with track(progress, "running the original", unit="tokens") as report:
        trial.engine.reference(original, trial.windows, out=trial.reference, threads=trial.threads, progress=report)
    found = []
    for number, plan in enumerate(plans, 1):
        what = f"candidate {number} of {len(plans)} ({_label(plan)})"
        found.append(trial.measured(plan, folder / "candidate.gguf", what, progress).mean_kld)
    return found


def _measured_there(
    plans: Sequence[Plan],
    planning: PlanningInput,
    measuring: Measuring,
    workers: RayCluster,
    original: Path,
    folder: Path,
    progress: OnProgress,
) -> list[float]:
    job = ClusterPlans(
        workers,
        measuring.engine,
        on_shared(measuring.windows),
        folder.resolve() / "reference.npy",
        planning.stats,
        tuple(plans),
        planning.request.threads,
    )
    with track(progress, "running the original on the cluster", unit="tokens"):
        reference_on(job, original.resolve())
    with track(progress, "measuring on the cluster", unit="candidates") as report:
        return [found.mean_kld for found in measured_on(job, report)]


def _label(plan: Plan) -> str:
    return f"{plan.pruning.expert_count} experts kept, {plan.activation.used} a token"


def _key(plan: Plan) -> tuple[int, int]:
    return plan.pruning.expert_count, plan.activation.used


def _point(plan: Plan) -> Point:
    return Point("candidate", "", *_key(plan), plan.bytes, plan.predicted_kld or 0.0, None, True)


def _with_measurement(
    point: Point, plans: dict[tuple[int, int], Plan], measured: dict[tuple[int, int], float], best: tuple[int, int]
) -> Point:
    key = (point.expert_count, point.experts_used)
    if point.kind != "candidate" or key not in measured:
        return point
    plan = plans[key]
    return dataclasses.replace(
        point,
        bytes=plan.bytes,
        predicted_kld=plan.predicted_kld or 0.0,
        measured_kld=measured[key],
        chosen=key == best,
    )
