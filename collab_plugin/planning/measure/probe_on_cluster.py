"""Disturbed windows on a Ray cluster: each window runs as it would on one machine, so the numbers are the same.

Workers open the model and read the texts on storage that all of them see.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collab_plugin.compression.ray_connection import TRIES, as_they_end, check_cores, connected, cores_of
from collab_plugin.engines.disturbance import Disturbance, Effects, ErrorShape
from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.planning.measure.cluster_worker import check_worker
from collab_plugin.progress import Advance, untold


@dataclass(frozen=True)
class ClusterProbe:
    """The arguments of `Engine.disturb`; ``threads`` are a worker's, and the cores that it takes."""

    engine: Engine
    model: Path
    disturbances: tuple[Disturbance, ...]
    shapes: Mapping[str, ErrorShape]
    windows: Windows
    most: int
    threads: int

    @property
    def needed(self) -> tuple[Path, ...]:
        """Files that every worker must see."""
        return (self.model, *self.windows.texts)


def disturbed_on(address: str, job: ClusterProbe, progress: Advance) -> Effects:
    """`Engine.disturb` with the windows shared out over the cluster at ``address``.

    A lost worker's windows are run again. Raises CollabError without Ray, for a cluster that is not there or whose
    machines have fewer cores than ``job.threads``, for what a worker says, and where its engine is of another version.
    """
    with connected(address) as ray:
        check_cores(ray, job.threads)
        parts = max(1, min(job.most, cores_of(ray) // job.threads))
        shared, version = ray.put(job), job.engine.version()
        task = ray.remote(num_cpus=job.threads, max_retries=TRIES)(_part)
        running = {task.remote([shared], version, number, parts): number for number in range(parts)}
        found: dict[int, Effects] = {}
        total = job.most * (len(job.disturbances) + 1) * job.windows.ctx
        progress(0, total)
        with closing(as_they_end(ray, running)) as ended:
            for number, effects in ended:
                found[number] = effects
                progress(sum(part.tokens_run for part in found.values()), total)
    return Effects.joined([found[number] for number in range(parts)])


def _part(held: list[Any], version: str, number: int, parts: int) -> Effects:
    """A task: the windows of part ``number`` of ``parts``, in a worker's process."""
    import ray

    job: ClusterProbe = ray.get(held[0])
    check_worker(job.engine, version, job.needed)
    return job.engine.disturb(
        job.model,
        job.disturbances,
        job.shapes,
        job.windows,
        most=job.most,
        part=(number, parts),
        threads=job.threads,
        progress=untold,
    )
