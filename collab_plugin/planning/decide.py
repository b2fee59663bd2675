"""From a request to the plan that is written: probe if asked, search, confirm if asked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.engines.ability import check_able, check_reads
from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.errors import CollabError
from collab_plugin.planning.back_off import Limits
from collab_plugin.planning.candidates import Frames
from collab_plugin.planning.measure.confirm import confirm
from collab_plugin.planning.measure.probe import ProbeRequest, probe
from collab_plugin.planning.request import PlanRequest, StatsSource, of_model
from collab_plugin.planning.search import make_plans, options
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.probes import Probes
from collab_plugin.stats.stats_file import write_probes

# Shares of experts dropped, in the order in which prunings are probed: the mild ones first, because
# they are what a search takes, then what shows the curve.
_ORDER = (1 / 16, 1 / 4, 1 / 8, 1 / 2)


@dataclass(frozen=True)
class Measuring:
    """How to measure: ``probe_seconds`` None for no probing, ``confirm`` plans to build (0: none).

    ``folder`` holds temporary files as large as the model.
    """

    engine: Engine
    windows: Windows
    folder: Path
    probe_seconds: float | None = None
    confirm: int = 0


def decide(
    checkpoint: Checkpoint,
    topology: Topology,
    source: StatsSource | None,
    request: PlanRequest,
    kernels: Kernels | None,
    measuring: Measuring | None,
    progress: OnProgress = silent,
) -> Plan:
    """Return the plan; probes are kept in the stats file of ``source``."""
    if measuring is not None and not measuring.windows.texts:
        raise CollabError(
            "--probe and --confirm measure on text: give --text FILE, the calibration text if nothing better"
        )
    if measuring is not None and (kernels is None or request.keep_types):
        raise CollabError("--probe and --confirm have nothing to measure with --keep-types; leave them out")
    if measuring is not None and request.layers == "varied":
        raise CollabError(
            "--probe and --confirm measure GGUF files, which have one number of experts for all layers; --probe "
            "without --layers varied first: what quantizing costs is kept in the stats and counts for this plan too"
        )
    source = of_model(checkpoint, source)
    if measuring is not None:
        # Mistakes are told before minutes are spent.
        for ability in ("reference", "evaluate"):
            check_able(measuring.engine, ability)
        check_reads(measuring.engine, "gguf", "what is measured")
        request.needed_budget()
        Limits.start(request.base, request.floors, request.ceilings, guarded=())
        if missing := [text for text in measuring.windows.texts if not text.is_file()]:
            raise CollabError(f"the text {missing[0]} does not exist")
    if measuring is not None and kernels is not None and measuring.probe_seconds is not None:
        source = _probe(
            Frames(checkpoint, topology, source, request, kernels),
            kernels,
            measuring,
            measuring.probe_seconds,
            progress,
        )
    number = max(1, measuring.confirm if measuring else 1)
    with track(progress, "measuring quantization errors", unit="errors") as report:
        plans = make_plans(checkpoint, topology, source, request, kernels, report, number)
    if measuring is None or not measuring.confirm or kernels is None:
        return plans[0]
    return confirm(
        plans, checkpoint, source.stats if source else None, kernels, measuring.engine, measuring.windows,
        threads=request.threads, folder=measuring.folder,
        progress=progress,
    )  # fmt: skip


def _probe(frames: Frames, kernels: Kernels, measuring: Measuring, seconds: float, progress: OnProgress) -> StatsSource:
    request = ProbeRequest(measuring.windows, seconds, frames.request.threads)
    source = frames.source
    found = source.stats.probes if source else None

    def keep(probes: Probes) -> None:
        nonlocal found
        assert source is not None and source.path is not None  # probe() asks for stats
        write_probes(source.path, source.stats, source.sha256, probes)
        found = probes

    with track(progress, "probing", unit="s") as report:
        probe(frames, prunings(frames), kernels, measuring.engine, request, measuring.folder, report, keep, progress)
    assert source is not None  # probe() asks for stats
    return dataclasses.replace(source, stats=dataclasses.replace(source.stats, probes=found))


def prunings(frames: Frames) -> list[tuple[int, int]]:
    """(experts kept, experts used) to probe, most telling first: what the request leaves open."""
    t = frames.topology
    found = [p for p in options(frames) if p != (t.expert_count, t.experts_used) and _possible(frames, *p)]

    def rank(pair: tuple[int, int]) -> tuple[float, float, int]:
        dropped = 1 - pair[0] / t.expert_count
        near = min(range(len(_ORDER)), key=lambda i: abs(_ORDER[i] - dropped))
        # The one nearest to a mark before its neighbours; of equal ones more experts used first.
        return (round(abs(_ORDER[near] - dropped), 9), near, -pair[1])

    return sorted(found, key=rank)


def _possible(frames: Frames, count: int, used: int) -> bool:
    """False where a search would not prune (too few calibration tokens); what was asked for raises."""
    try:
        frames.frame(count, used)
    except CollabError:
        if frames.request.keep != "auto":
            raise
        return False
    return True
