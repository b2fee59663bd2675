"""A model's logits beside its original's, window by window, and the figures of all: what engines' `evaluate` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def scored_rows(ctx: int) -> slice:
    """Of a window of ``ctx`` tokens the positions whose next token is scored: as in llama-perplexity the second half
    (perplexity.cpp:540), so that each has some context. The logits of position i predict the token at i + 1."""
    return slice(ctx // 2, ctx - 1)


class Comparison:
    """Collects windows. In float64, some rows at a time to bound memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {"nll": [], "nll_original": [], "kld": [], "same": []}

    def add(self, logits: F32, original: F32, targets: NDArray[np.int64]) -> None:
        """Add positions: logits f32[n, V] of both, ``targets`` i64[n] the tokens that follow.

        CollabError when logits are not finite.
        """
        for store, values in zip(self._parts.values(), compare(logits, original, targets), strict=True):
            store.append(values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `evaluation_of` reads: a value a position, "nll", "nll_original", "kld" in nats, "same" of bool."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


def compare(
    logits: F32, original: F32, targets: NDArray[np.int64], block: int = 32
) -> tuple[F64, F64, F64, NDArray[np.bool_]]:
    """A position: -log p of the target under both, KL(original || model) in nats, same top-1. logits f32[n, V]."""
    parts = []
    for start in range(0, len(targets), block):
        log_p = log_softmax(logits[start : start + block])
        log_q = log_softmax(original[start : start + block])
        at = np.arange(len(log_p)), targets[start : start + block]
        divergence = (np.exp(log_q) * (log_q - log_p)).sum(-1)
        parts.append((-log_p[at], -log_q[at], divergence, log_p.argmax(-1) == log_q.argmax(-1)))
    nll, other, kld, same = (np.concatenate(column) for column in zip(*parts, strict=True))
    return nll, other, kld, same


def log_softmax(logits: F32) -> F64:
    """f32[n, V] to f64[n, V]."""
    x = logits.astype(np.float64)
    if not np.isfinite(x).all():
        raise CollabError("the model's logits are not finite: the file is damaged or was quantized too hard")
    x -= x.max(-1, keepdims=True)
    result: F64 = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def evaluation_of(arrays: Mapping[str, NDArray[Any]], ctx: int) -> Evaluation:
    """The figures of what `Comparison.arrays` gave; "overlap" may be there beside."""
    kld = arrays["kld"]
    return Evaluation(
        ppl=float(np.exp(arrays["nll"].mean())),
        ppl_original=float(np.exp(arrays["nll_original"].mean())),
        mean_kld=float(kld.mean()),
        mean_kld_stderr=float(kld.std(ddof=1) / np.sqrt(len(kld))) if len(kld) > 1 else 0.0,
        **_percentiles(kld),
        same_top1=float(arrays["same"].mean()),
        tokens=len(kld),
        ctx=ctx,
        text_overlap=float(arrays["overlap"]) if "overlap" in arrays else None,
    )


def _percentiles(kld: F64) -> dict[str, float]:
    values = np.percentile(kld, [50, 90, 95, 99, 99.9, 100])
    names = ("kld_p50", "kld_p90", "kld_p95", "kld_p99", "kld_p999", "kld_max")
    return dict(zip(names, values.tolist(), strict=True))
