"""Plans measured on a Ray cluster: a worker makes and evaluates the file of one as one machine would, so the numbers
are the same.

Workers read the model, the texts and the original's logits on storage that all of them see, and have their files there
for a while.
"""

from __future__ import annotations

import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.compression.ray_connection import TRIES, as_they_end, check_cores, connected, result
from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.engines.results import Evaluation
from collab_plugin.planning.measure.cluster_worker import check_worker
from collab_plugin.planning.measure.plan_trial import PlanTrial
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import Advance, untold
from collab_plugin.stats.stats import Stats


@dataclass(frozen=True)
class ClusterPlans:
    """``plans`` to measure with ``engine`` on ``windows``; ``threads`` are a worker's, and the cores that it takes.

    ``reference``: of the original, as `reference_on` or `Engine.reference` writes it; files of plans lie in its folder.
    """

    workers: RayCluster
    engine: Engine
    windows: Windows
    reference: Path
    stats: Stats | None
    plans: tuple[Plan, ...]
    threads: int


def reference_on(job: ClusterPlans, original: Path) -> None:
    """`Engine.reference` of ``original`` by a worker. Raises what `measured_on` raises."""
    with connected(job.workers.address) as ray:
        check_cores(ray, job.threads)
        task = ray.remote(num_cpus=job.threads, max_retries=TRIES)(_reference)
        result(ray, task.remote([ray.put(job)], job.engine.version(), original))


def measured_on(job: ClusterPlans, progress: Advance) -> list[Evaluation]:
    """What each plan's file measures, in their order. ``progress`` is told of plans.

    A lost worker's plan is measured again. Raises CollabError without Ray, for a cluster that is not there or whose
    machines have fewer cores than ``job.threads``, for what a worker says, and where its engine is of another version.
    """
    with connected(job.workers.address) as ray:
        check_cores(ray, job.threads)
        shared, version = ray.put(job), job.engine.version()
        task = ray.remote(num_cpus=job.threads, max_retries=TRIES)(_measured)
        found: dict[int, Evaluation] = {}
        progress(0, len(job.plans))
        running = {task.remote([shared], version, number): number for number in range(len(job.plans))}
        with closing(as_they_end(ray, running)) as ended:
            for number, evaluation in ended:
                found[number] = evaluation
                progress(len(found))
    return [found[number] for number in range(len(job.plans))]


def _reference(held: list[Any], version: str, original: Path) -> None:
    """A task: the original's logits."""
    import ray

    job: ClusterPlans = ray.get(held[0])
    check_worker(job.engine, version, (original, *job.windows.texts, job.reference.parent))
    job.engine.reference(original, job.windows, out=job.reference, threads=job.threads, progress=untold)


def _measured(held: list[Any], version: str, number: int) -> Evaluation:
    """A task: the plan ``number``, whose file has a name of its own, because a worker that was taken for lost may still
    write one."""
    import ray

    job: ClusterPlans = ray.get(held[0])
    check_worker(job.engine, version, (job.reference, *job.windows.texts))
    workers = job.workers
    trial = PlanTrial(
        workers.open_model(),
        job.stats,
        workers.samples(),
        workers.kernels(),
        job.engine,
        job.windows,
        job.reference,
        job.threads,
    )
    return trial.measured(job.plans[number], job.reference.with_name(f"plan-{number}-{uuid.uuid4().hex}.gguf"))
