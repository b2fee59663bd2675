"""`compress`: write what a plan describes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, overload

import numpy as np

from collab_plugin.api.arguments import AnyPath, Model, object_or_path, opened, plan_of, threads_of
from collab_plugin.api.trace_argument import trace_for
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression.expert_order import check_order, company_of, heat_of, ordered_by
from collab_plugin.compression.gguf_file import Compressed
from collab_plugin.compression.gguf_file import compress as compress_gguf
from collab_plugin.compression.hf_folder import CompressedFolder, FolderPrecision, compress_folder
from collab_plugin.compression.inputs import quantizes, samples_of, stats_of
from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.compression.ray_connection import address_elsewhere
from collab_plugin.errors import CollabError
from collab_plugin.formats.output_path import check_output, check_output_folder
from collab_plugin.planning.budget import parse_size
from collab_plugin.plans.artifact import check_one_count
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.plugins.manager import first_kernels
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.match_model import match_model
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import read_stats


@overload
def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    samples: AnyPath | None = None,
    format: Literal["gguf"] = "gguf",
    precision: None = None,
    split: str | int | None = None,
    order: str | None = None,
    trace: RoutingTrace | AnyPath | None = None,
    cluster: str | None = None,
    kernels: Kernels | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Compressed: ...


@overload
def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: None = None,
    samples: None = None,
    format: Literal["safetensors"],
    precision: FolderPrecision | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> CompressedFolder: ...


@overload
def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    samples: AnyPath | None = None,
    format: str,
    precision: FolderPrecision | None = None,
    split: str | int | None = None,
    order: str | None = None,
    trace: RoutingTrace | AnyPath | None = None,
    cluster: str | None = None,
    kernels: Kernels | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Compressed | CompressedFolder: ...


def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    samples: AnyPath | None = None,
    format: str = "gguf",
    precision: FolderPrecision | None = None,
    split: str | int | None = None,
    order: str | None = None,
    trace: RoutingTrace | AnyPath | None = None,
    cluster: str | None = None,
    kernels: Kernels | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Compressed | CompressedFolder:
    """Write what ``plan`` describes to ``out``: the GGUF, or with ``format`` "safetensors" a Hugging Face folder.

    ``stats``: those that the plan was made with; where not given, the file of that name beside the plan's file.
    ``samples``: likewise, of a plan that repairs.
    ``precision`` of a folder: "plan" (8 and 4 bits as compressed-tensors where the plan has few) or "original".
    ``split``: no GGUF file larger than that ("45GB", or bytes); where one is not enough there are several, named as
    llama-gguf-split does. ``order`` of the experts in a GGUF, when not the plan's: "heat" (the most chosen first, by
    ``trace`` or else by the stats) or "co-activation" (those that tokens of ``trace`` choose together side by side).
    The plan that this makes of the given one is written beside ``out``, as OUT.plan.json.
    ``cluster``: address of a Ray cluster whose workers do it, with the same bytes; the model, the output and samples
    lie on storage that all of them see. ``kernels`` quantize; by default the first that a plugin brings. The output
    appears under its name only when complete; an interrupted run goes on when called again.

    Example: ``cp.compress("DeepSeek-V3/", "plan.json", "out.gguf", progress=print).bytes``
    """
    decided, folder = plan_of(plan)
    if format == "safetensors":
        if stats is not None:
            raise CollabError("`stats` is for GGUF files: 8 and 4 bits of compressed-tensors need none; leave it out")
        if order is not None:
            raise CollabError("`order` is for GGUF files: a folder has a tensor for each expert; leave it out")
        if split is not None:
            raise CollabError("`split` is for GGUF files: a folder has files of at most 5 GB; leave it out")
        if cluster is not None:
            raise CollabError("`cluster` is for GGUF files: a folder is written by this machine; leave it out")
        check_output_folder(Path(out))
        check_one_count(decided, "a config.json")
        if samples is not None or decided.repair is not None:
            raise CollabError("a folder holds experts as they are: plan without `samples` for `format` safetensors")
        checkpoint = opened(model)
        with track(progress, "compressing", unit="weights") as advance:
            return compress_folder(
                checkpoint,
                decided,
                Path(out),
                precision=precision or "plan",
                threads=threads_of(threads),
                report=advance,
            )
    if format != "gguf":
        raise CollabError(f"`format` {format!r} is neither gguf nor safetensors")
    if precision is not None:
        raise CollabError("`precision` is for `format` safetensors: a GGUF has the plan's types; leave it out")
    check_output(Path(out))
    most = None if split is None else parse_size(str(split), "split")
    check_one_count(decided, "a GGUF")  # before stats and kernels are missed
    checkpoint = opened(model)
    used = stats_of(decided, checkpoint, folder, object_or_path(stats))
    sampled = samples_of(decided, folder, None if samples is None else Path(samples))
    if order is not None:
        decided = _ordered(decided, checkpoint, order, used, object_or_path(stats), trace)
        write_plan(Path(f"{out}.plan.json"), decided)
    elif trace is not None:
        raise CollabError("`trace` says in which `order` experts stand: give that too")
    if kernels is not None and cluster is not None:
        raise CollabError(
            "`kernels` are objects of this process: workers of a `cluster` take their own; leave them out"
        )
    if kernels is None and quantizes(decided, checkpoint):
        kernels = first_kernels()
    workers = None
    if cluster is not None:
        given = None if samples is None else Path(samples).resolve()
        beside = None if folder is None else folder.resolve()
        workers = RayCluster(
            cluster,
            partial(open_checkpoint, address_elsewhere(checkpoint)),
            partial(_kernels, quantizes(decided, checkpoint)),
            partial(samples_of, decided, beside, given),
        )
    with track(progress, "compressing", unit="weights") as advance:
        return compress_gguf(
            checkpoint,
            decided,
            used,
            Path(out),
            kernels=kernels,
            threads=threads_of(threads),
            report=advance,
            samples=sampled,
            split=most,
            cluster=workers,
        )


def _ordered(
    plan: Plan,
    checkpoint: Checkpoint,
    order: str,
    used: Stats | None,
    given: Stats | Path | None,
    trace: RoutingTrace | AnyPath | None,
) -> Plan:
    kind = check_order(order)
    if trace is not None:
        found = trace_for(trace, checkpoint)
        return ordered_by(plan, checkpoint, kind, heat_of(found) if kind == "heat" else company_of(found))
    if kind == "co-activation":
        raise CollabError("`order` co-activation needs a `trace` (`calibrate` records one)")
    stats = used or (read_stats(given) if isinstance(given, Path) else given)
    if stats is None:
        raise CollabError("`order` heat needs a `trace` or `stats`")
    matched = match_model(stats, checkpoint, "`stats`").stats
    counts = {layer: routing.count.astype(np.float64) for layer, routing in matched.routing.items()}
    return ordered_by(plan, checkpoint, kind, counts)


def _kernels(needed: bool) -> Kernels | None:
    """A worker's own."""
    return first_kernels() if needed else None
