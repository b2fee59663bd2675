"""Routing statistics and importance matrix of one model: the document `calibrate` writes.

File format, reading and writing: stats_file.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


BORROW = 32.0
"""Default of `plan --borrow`: lowers the KL divergence of 2-bit experts by 13 % after 512 tokens of
calibration, by 1 % after 12,288 (tiny-qwen3moe; docs/quality.md)."""


@dataclass(frozen=True)
class LayerRouting:
    """What the router of one layer did over ``tokens`` tokens. E = experts of the layer.

    ``count`` i64[E]: times each expert was selected (sums to tokens × top-k).
    ``weight_sum`` f64[E]: sum of the router weights with which it was selected, as applied to its
    output (after renormalisation and scaling).
    ``reap_sum`` f64[E]: sum of weight × L2 norm of the expert's output (REAP, arXiv 2510.13999 eq. 9).
    The two sums are None where they were not measured: a published imatrix has counts only.
    """

    tokens: int
    count: I64
    weight_sum: F64 | None = None
    reap_sum: F64 | None = None

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """bool[E]: never selected, so unknown rather than worthless."""
        return np.asarray(self.count == 0)


@dataclass(frozen=True)
class ImatrixEntry:
    """Sum of squared activations that met one weight tensor's columns.

    ``sum2`` f32[C, m] and ``count`` f32[C], as llama-imatrix stores them: for routed experts C = E and
    m = row width; for everything else C = 1, and m = slices × row width (MLA's 3-D tensors have a
    slice a head).
    """

    sum2: F32
    count: F32

    def vector(self, index: int, n: int, borrow: float = 0.0) -> F32:
        """Return the importance vector f32[n] of slice ``index`` of a tensor with rows of ``n``.

        Mean squared activation, with ``borrow`` tokens of all experts' mean added to an expert's own:
        w = (Σx² + λ·mean) / (n + λ). Without borrowing, ones for an expert never seen (as
        tools/quantize/quantize.cpp:199). ValueError when the entry does not fit such a tensor.
        """
        per_slice = len(self.count) > 1
        row, at = (index, 0) if per_slice else (0, index * n)
        if row >= len(self.count) or at + n > self.sum2.shape[1] or (per_slice and self.sum2.shape[1] != n):
            raise ValueError(f"imatrix of {self.sum2.shape} does not fit slice {index} of rows of {n}")
        if per_slice and borrow > 0 and self.count.sum() > 0:
            own, seen = self.sum2[row].astype(np.float64), float(self.count[row])
            return np.asarray((own + borrow * self._mean) / (seen + borrow), np.float32)
        if self.count[row] <= 0:
            return np.ones(n, np.float32)
        return np.asarray(self.sum2[row, at : at + n] / self.count[row], np.float32)

    @cached_property
    def _mean(self) -> F64:
        """f64[m]: mean squared activation over all experts' tokens."""
        return np.asarray(self.sum2.sum(0, dtype=np.float64) / self.count.sum(dtype=np.float64))


@dataclass(frozen=True)
class Stream:
    """The residual stream at one layer: its squared norm after the layer's attention and after the layer, as the
    harmonic mean over tokens. An error's share of it, a mean over tokens, is the error's own mean squared norm divided
    by this; an arithmetic mean would be that of the few tokens that some models give huge norms."""

    after_attention: float
    after_layer: float


@dataclass(frozen=True)
class InputRounding:
    """What the inputs of a tensor lose where they are rounded to 8 bits in blocks of 256 or of 32 values: squared error
    over the input's square, a mean over tokens (quantize/rounded_inputs.py). 0 where a row has no such blocks."""

    of_256: float
    of_32: float

    def lost(self, block: int) -> float:
        """In blocks of so many values; none for 0."""
        return {256: self.of_256, 32: self.of_32}.get(block, 0.0)


@dataclass(frozen=True)
class Stats:
    """Routing statistics by layer, importance matrix by GGUF tensor name, and where they came from.

    ``imatrix`` is empty when the engine measures routing only. ``model_id``: checkpoint.identity.model_id of
    the calibrated model, None for foreign files.
    ``seed``: what windows of the texts were drawn with, None where all were taken or the first.
    ``text_sketch``: u64[<=1024], bottom-k sketch of the calibration text's token n-grams (text_overlap.py).
    ``streams``: the residual stream by layer, of layers where the engine sees it. ``rounding``: by tensor name, where
    the engine sees its inputs. ``shared_gates``: of layers whose shared expert's output is multiplied with a sigmoid
    for each token (Qwen2-MoE, Qwen3-Next, Qwen3.5), its mean square.
    """

    routing: Mapping[int, LayerRouting]
    imatrix: Mapping[str, ImatrixEntry]
    tokens: int
    chunk_size: int
    datasets: tuple[str, ...] = ()
    model_id: str | None = None
    engine: str = ""
    seed: int | None = None
    text_sketch: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    streams: Mapping[int, Stream] = field(default_factory=dict)
    rounding: Mapping[str, InputRounding] = field(default_factory=dict)
    shared_gates: Mapping[int, float] = field(default_factory=dict)
