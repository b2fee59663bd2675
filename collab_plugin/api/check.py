"""`check`: is a file or folder what its plan makes of its source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from collab_plugin.api.arguments import AnyPath, Model, at_least, object_or_path, opened, plan_of, threads_of
from collab_plugin.checkpoint.gguf import GgufCheckpoint
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint
from collab_plugin.compression.check_artifact import (
    CheckedArtifact,
    check_against_plan,
    check_against_source,
)
from collab_plugin.compression.check_folder import check_folder
from collab_plugin.compression.inputs import quantizes, samples_of, stats_of
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan
from collab_plugin.plugins.manager import first_kernels
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.stats import Stats

PIECES = 128


def check(
    artifact: Model,
    plan: Plan | AnyPath,
    model: Model | None = None,
    *,
    stats: Stats | AnyPath | None = None,
    samples: AnyPath | None = None,
    pieces: int | Literal["all"] = PIECES,
    seed: int = 0,
    kernels: Kernels | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> CheckedArtifact:
    """Return what of ``artifact``, a GGUF or a folder, is not as ``plan`` says.

    The plan alone tells names, types, kept experts and bytes. With ``model``, what the plan was made for, keys, header
    and shapes are compared too, and ``pieces`` of tensors (128 of at most 131,072 weights each, drawn with ``seed``; or
    "all": every byte) are quantized anew and compared. ``stats`` and ``samples``: as `compress` takes
    them, for a GGUF. ``kernels`` quantize. Of a folder, files that are copied are compared too.

    Example: ``cp.check("out.gguf", "plan.json", "DeepSeek-V3/").problems``
    """
    decided, folder = plan_of(plan)
    if pieces != "all":
        at_least("pieces", pieces, 1)
    written = opened(artifact)
    if isinstance(written, SafetensorsCheckpoint):
        if stats is not None or samples is not None or kernels is not None:
            raise CollabError("`stats`, `samples` and `kernels` are for GGUF files: leave them out")
        source = None if model is None else opened(model)
        with track(progress, "checking", unit="pieces") as advance:
            return check_folder(
                written,
                decided,
                source,
                pieces=None if pieces == "all" else pieces,
                seed=seed,
                threads=threads_of(threads),
                report=advance,
            )
    if not isinstance(written, GgufCheckpoint):
        raise CollabError(f"{written.address} is no GGUF and no folder: `artifact` is what `compress` wrote")
    if model is None:
        if stats is not None or samples is not None:
            raise CollabError("`stats` and `samples` are of no use without `model`, which pieces are made anew from")
        found = check_against_plan(written, decided)
        return CheckedArtifact(written.address, len(written.tensors), 0, 0, found)
    source = opened(model)
    used = stats_of(decided, source, folder, object_or_path(stats))
    sampled = samples_of(decided, folder, None if samples is None else Path(samples))
    if kernels is None and quantizes(decided, source):
        kernels = first_kernels()
    with track(progress, "checking", unit="pieces") as advance:
        return check_against_source(
            written,
            source,
            decided,
            used,
            sampled,
            kernels=kernels,
            pieces=None if pieces == "all" else pieces,
            seed=seed,
            threads=threads_of(threads),
            report=advance,
        )
