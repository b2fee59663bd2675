"""Run disturbed windows beside an undisturbed one, many in a batch, and compare what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.disturber import Disturber
from collab_llamacpp.calibrate.job_types import DisturbJob
from collab_llamacpp.native.model import LoadedModel
from collab_plugin.engines.compare_logits import log_softmax
from collab_plugin.engines.disturbance import Disturbance, ErrorShape
from collab_plugin.errors import CollabError
from collab_plugin.progress import Advance

MOST_SEQUENCES = 16
BATCH_TOKENS = 8192
LOGIT_BYTES = 2**30
"""A batch holds at most so many tokens, and their logits so many bytes."""


def sequences_for(ctx: int, vocabulary: int, wanted: int) -> int:
    """Sequences that a batch has room for: ``wanted``, as far as memory goes, but at least 2."""
    tokens = min(BATCH_TOKENS, LOGIT_BYTES // (4 * vocabulary))
    return max(2, min(MOST_SEQUENCES, wanted, tokens // ctx))


def disturb(job: DisturbJob, progress: Advance) -> dict[str, NDArray[Any]]:
    """See `Engine.disturb`. The first sequence of a window's first batch is undisturbed.

    Returns ``sums`` f64[disturbances, windows, 3], as `Effect` has them, and the numbers of `Effects`.
    """
    ctx, disturbances = job.cut.ctx, job.disturbances
    runs: list[Disturbance | None] = [None, *disturbances]
    count = sequences_for(ctx, job.vocabulary, len(runs))
    disturber = Disturber(_shapes(job.shapes), ctx, job.logits_as_weights)
    sums: list[list[tuple[float, float, int]]] = [[] for _ in disturbances]
    tokens_run = scored = 0
    with LoadedModel(
        Path(job.model), ctx=ctx, threads=job.threads, callback=disturber.callback, sequences=count
    ) as session:
        first, step = job.part
        windows = spread(session.windows(job.cut), job.most)[first::step]
        for window in windows:
            clean = np.empty((0, 0))
            for start in range(0, len(runs), count):
                batch = runs[start : start + count]
                disturber.set(batch)
                session.decode_together([window.tolist()] * len(batch))
                disturber.finish()
                tokens_run += len(batch) * ctx
                logits = session.logits(len(batch) * ctx).reshape(len(batch), ctx, -1)[:, ctx // 2 : -1]
                for index, rows in enumerate(logits, start):
                    if index == 0:
                        clean = log_softmax(rows)
                    else:
                        kld = (np.exp(clean) * (clean - log_softmax(rows))).sum(-1)
                        sums[index - 1].append((float(kld.sum()), float(np.square(kld).sum()), len(kld)))
                progress(tokens_run, len(windows) * len(runs) * ctx)
            scored += len(clean)
    if windows and (missing := sorted({name for d in disturbances for name in d.tensors} - disturber.hit)):
        raise CollabError(f"{missing[0]} was not multiplied with when {job.model} ran: its error cannot be told")
    return {
        "sums": np.array(sums, np.float64).reshape(len(disturbances), len(windows), 3),
        "windows": np.array(len(windows)),
        "scored": np.array(scored),
        "tokens_run": np.array(tokens_run),
    }


def spread(windows: list[NDArray[np.int64]], most: int | None) -> list[NDArray[np.int64]]:
    """At most ``most`` of the windows, evenly spread."""
    if most is None or most >= len(windows):
        return windows
    return [windows[(2 * i + 1) * len(windows) // (2 * most)] for i in range(most)]


def _shapes(path: str) -> dict[str, ErrorShape]:
    with np.load(path, allow_pickle=False) as arrays:
        names = [key.removeprefix("energy.") for key in arrays if key.startswith("energy.")]
        return {name: ErrorShape(*(arrays[f"{of}.{name}"] for of in ("energy", "inputs", "plain"))) for name in names}
