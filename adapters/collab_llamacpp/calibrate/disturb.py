"""Run disturbed windows beside an undisturbed one, many in a batch, and compare what comes out."""

from __future__ import annotations

from dataclasses import dataclass
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
    """Sequences in a batch: one for each of ``wanted`` disturbances and one undisturbed, as far as memory goes."""
    tokens = min(BATCH_TOKENS, LOGIT_BYTES // (4 * vocabulary))
    return max(2, min(MOST_SEQUENCES, wanted + 1, tokens // ctx))


@dataclass
class _Sums:
    """Of one disturbance: KL divergence over all scored tokens, its square, and their number."""

    kld: float = 0.0
    square: float = 0.0
    tokens: int = 0

    def add(self, values: NDArray[np.float64]) -> None:
        self.kld += float(values.sum())
        self.square += float(np.square(values).sum())
        self.tokens += len(values)

    @property
    def mean(self) -> float:
        return self.kld / self.tokens

    @property
    def stderr(self) -> float:
        variance = max(self.square / self.tokens - self.mean**2, 0.0)
        return float(np.sqrt(variance / self.tokens))


def disturb(job: DisturbJob, progress: Advance) -> dict[str, NDArray[Any]]:
    """See `Engine.disturb`. The last sequence of every batch is undisturbed.

    Returns ``mean_kld``, ``stderr`` and ``tokens``, one of each a disturbance.
    """
    ctx, disturbances = job.cut.ctx, job.disturbances
    count = sequences_for(ctx, job.vocabulary, len(disturbances))
    disturber = Disturber(_shapes(job.shapes), count, ctx, job.logits_as_weights)
    sums = [_Sums() for _ in disturbances]
    with LoadedModel(
        Path(job.model), ctx=ctx, threads=job.threads, callback=disturber.callback, sequences=count
    ) as session:
        windows = session.windows([Path(text) for text in job.cut.texts], ctx, job.cut.chunks)
        batches = [range(at, min(at + count - 1, len(disturbances))) for at in range(0, len(disturbances), count - 1)]
        for number, window in enumerate(windows):
            for batch_number, batch in enumerate(batches):
                part: list[Disturbance | None] = [disturbances[i] for i in batch]
                disturber.set(part + [None] * (count - len(part)), number)
                session.decode_together([window.tolist()] * count)
                disturber.finish()
                logits = session.logits(count * ctx).reshape(count, ctx, -1)
                clean = log_softmax(logits[-1, ctx // 2 : -1])
                for sequence, index in enumerate(batch):
                    other = log_softmax(logits[sequence, ctx // 2 : -1])
                    sums[index].add((np.exp(clean) * (clean - other)).sum(-1))
                done = number * len(batches) + batch_number + 1
                progress(done * count * ctx, len(windows) * len(batches) * count * ctx)
    if missing := sorted({name for d in disturbances for name in d.errors} - disturber.hit):
        raise CollabError(f"{missing[0]} was not multiplied with when {job.model} ran: its error cannot be told")
    return {
        "mean_kld": np.array([each.mean for each in sums]),
        "stderr": np.array([each.stderr for each in sums]),
        "tokens": np.array([each.tokens for each in sums]),
    }


def _shapes(path: str) -> dict[str, ErrorShape]:
    with np.load(path, allow_pickle=False) as arrays:
        names = [key.removeprefix("energy.") for key in arrays if key.startswith("energy.")]
        return {name: ErrorShape(arrays[f"energy.{name}"], arrays[f"inputs.{name}"]) for name in names}
