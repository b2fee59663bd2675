"""Did the calibration text leak into the evaluation text? A sketch of token n-grams tells."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError

N = 12
"""Tokens in an n-gram: long enough that chance repeats are rare, short enough to survive edits."""
SIZE = 1024
U64 = NDArray[np.uint64]


def ngram_hashes(tokens: NDArray[np.int64]) -> U64:
    """Distinct 64-bit hashes of all ``N``-token windows of i64[n], ascending."""
    if len(tokens) < N:
        return np.empty(0, np.uint64)
    count = len(tokens) - N + 1
    value = np.zeros(count, np.uint64)
    for i in range(N):
        # A multiply-and-mix step (splitmix64's constants), vectorised over all windows.
        value = (value ^ tokens[i : i + count].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(value ^ (value >> np.uint64(32)))


def sketch(tokens: NDArray[np.int64]) -> U64:
    """Bottom-k sketch: the ``SIZE`` smallest hashes, an even sample of the distinct n-grams."""
    return ngram_hashes(tokens)[:SIZE]


def overlap(calibration: U64, tokens: NDArray[np.int64]) -> float:
    """Share (0 to 1) of the sketched n-grams that occur in ``tokens``."""
    if not len(calibration):
        return 0.0
    return float(np.isin(calibration, ngram_hashes(tokens)).mean())


def encode_sketch(values: U64) -> str:
    """Base64 of little-endian u64, as plans and GGUF keys carry it."""
    return base64.b64encode(values.astype("<u8").tobytes()).decode()


def decode_sketch(text: str) -> U64:
    """Inverse of `encode_sketch`; CollabError for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
        return np.frombuffer(data, "<u8").astype(np.uint64)
    except ValueError:
        raise CollabError("collab.calibration.ngrams is damaged") from None
