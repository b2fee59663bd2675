"""What measures: an engine on text. Checked before minutes are spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.engines.ability import check_able, check_reads
from collab_plugin.engines.disturbance import Disturbance, Effects, ErrorShape
from collab_plugin.engines.engine import Ability, Engine, Windows
from collab_plugin.errors import CollabError
from collab_plugin.planning.measure.cluster_worker import on_shared
from collab_plugin.planning.measure.probe_on_cluster import ClusterProbe, disturbed_on
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.progress import Advance
from collab_plugin.stats.stats import Stats

_NEEDED: tuple[Ability, ...] = ("reference", "evaluate")


@dataclass(frozen=True)
class Measuring:
    """``engine`` compares models with the original on ``windows``. ``cluster``: address of a Ray cluster that `disturb`
    runs on, None for this machine. ``workers``: of a cluster that measures plans, None for this machine."""

    engine: Engine
    windows: Windows
    cluster: str | None = None
    workers: RayCluster | None = None

    def disturb(
        self,
        model: Path,
        disturbances: Sequence[Disturbance],
        shapes: Mapping[str, ErrorShape],
        *,
        most: int,
        threads: int,
        progress: Advance,
    ) -> Effects:
        """`Engine.disturb`, here or on the cluster: the same numbers."""
        if self.cluster is None:
            return self.engine.disturb(
                model, disturbances, shapes, self.windows, most=most, threads=threads, progress=progress
            )
        job = ClusterProbe(
            self.engine, model.resolve(), tuple(disturbances), shapes, on_shared(self.windows), most, threads
        )
        return disturbed_on(self.cluster, job, progress)


def default_ctx(stats: Stats | None) -> int:
    """Tokens a window when nothing is said: as many as calibration used."""
    return stats.chunk_size if stats is not None else Windows(()).ctx


def check_disturbing(planning: PlanningInput, measuring: Measuring) -> None:
    """CollabError when the engine cannot disturb a running model, or the request has nothing to measure."""
    if planning.request.layers == "varied":
        raise CollabError("`layers` varied cannot be probed: leave it out, what is measured counts for such plans too")
    check_able(measuring.engine, "disturb")
    check_reads(measuring.engine, "gguf", "what is measured")


def check_measuring(planning: PlanningInput, measuring: Measuring) -> None:
    """CollabError when there is nothing to measure, or the engine cannot."""
    if planning.request.keep_types:
        raise CollabError("`confirm` has nothing to measure with `keep_types`; leave it out")
    if planning.request.layers == "varied":
        raise CollabError(
            "`confirm` measures GGUF files, which have one number of experts for all layers; leave it out with "
            "`layers` varied (what `probe` measured counts for this plan too)"
        )
    for ability in _NEEDED:
        check_able(measuring.engine, ability)
    check_reads(measuring.engine, "gguf", "what is measured")
    planning.needed_kernels()
