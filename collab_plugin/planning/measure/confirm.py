"""Build the best few plans, measure them, and keep the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from collab_plugin.compression.as_gguf import runnable
from collab_plugin.compression.gguf_file import compress
from collab_plugin.planning.measure.measuring import Measuring
from collab_plugin.planning.measure.scratch_folder import scratch_folder
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.plans.plan import Plan, Point, ascending
from collab_plugin.progress import OnProgress, silent, track


def confirm_plans(
    plans: Sequence[Plan], planning: PlanningInput, measuring: Measuring, progress: OnProgress = silent
) -> Plan:
    """Return the plan with the least measured KL divergence; its ``considered`` holds every measurement.

    The user's cache folder needs room for one artifact and the original's logits.
    """
    measured: dict[tuple[int, int], float] = {}
    checkpoint, kernels, threads = planning.checkpoint, planning.needed_kernels(), planning.request.threads
    engine, windows = measuring.engine, measuring.windows
    original = runnable(engine, "reference", checkpoint, threads, progress)
    with scratch_folder() as folder:
        reference, out = folder / "reference.npy", folder / "candidate.gguf"
        with track(progress, "running the original", unit="tokens") as report:
            engine.reference(original, windows, out=reference, threads=threads, progress=report)
        for number, plan in enumerate(plans, 1):
            what = f"candidate {number} of {len(plans)} ({_label(plan)})"
            with track(progress, f"compressing {what}", unit="weights") as report:
                compress(
                    checkpoint,
                    plan,
                    planning.stats,
                    out,
                    kernels=kernels,
                    threads=threads,
                    report=report,
                    samples=planning.samples_source.samples if planning.samples_source else None,
                )
            with track(progress, f"evaluating {what}", unit="tokens") as report:
                result = engine.evaluate(out, reference, windows, threads=threads, progress=report)
            measured[_key(plan)] = result.mean_kld
            out.unlink()
    best = min(plans, key=lambda plan: measured[_key(plan)])
    by_plan = {_key(plan): plan for plan in plans}
    considered = best.considered or (_point(best),)
    return dataclasses.replace(
        best, considered=ascending(_with_measurement(p, by_plan, measured, _key(best)) for p in considered)
    )


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
