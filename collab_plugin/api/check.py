"""`check`: is a file what its plan makes of its source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from collab_plugin.api.arguments import AnyPath, Model, at_least, object_or_path, opened, plan_of, threads_of
from collab_plugin.compression.check_artifact import (
    CheckedArtifact,
    as_gguf_artifact,
    check_against_plan,
    check_against_source,
)
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
    """Return what of the GGUF ``artifact`` is not as ``plan`` says.

    The plan alone tells names, types, kept experts and bytes. With ``model``, what the plan was made for, keys, header
    and shapes are compared too, and ``pieces`` of tensors (128 of at most 131,072 weights each, drawn with ``seed``; or
    "all": every byte) are quantized anew and compared. ``stats`` and ``samples``: as `compress` takes
    them. ``kernels`` quantize.

    Example: ``cp.check("out.gguf", "plan.json", "DeepSeek-V3/").problems``
    """
    decided, folder = plan_of(plan)
    if pieces != "all":
        at_least("pieces", pieces, 1)
    written = as_gguf_artifact(opened(artifact))
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
