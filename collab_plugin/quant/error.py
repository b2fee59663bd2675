"""How much a type hurts a tensor: importance-weighted relative squared error on sampled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.base import Checkpoint, TensorInfo
from collab_plugin.compress.tiles import importance
from collab_plugin.progress import Report
from collab_plugin.quant.kernels import Kernels
from collab_plugin.stats import Stats

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """At most ``values`` weights over all tensors and ``per_tensor`` of one, from up to ``slices`` experts."""

    values: int = 2**25
    per_tensor: int = 2**18
    slices: int = 8


@dataclass(frozen=True)
class Sample:
    """Rows f32[r, n] of one slice; ``index`` is the slice in the source."""

    index: int | None
    rows: F32


def sample_rows(
    checkpoint: Checkpoint, info: TensorInfo, slices: Sequence[int] | None, values: int, most_slices: int
) -> list[Sample]:
    """Evenly spaced rows of evenly spaced slices, about ``values`` weights: the same on every run."""
    n = info.shape[-1]
    if len(info.shape) == 2:
        return [Sample(None, _spread(checkpoint, info.name, None, info.shape[0], max(1, values // n)))]
    candidates = np.asarray(range(info.shape[0]) if slices is None else slices)
    picked = candidates[np.unique(np.linspace(0, len(candidates) - 1, most_slices).astype(int))]
    rows = max(1, values // n // len(picked))
    return [Sample(int(i), _spread(checkpoint, info.name, int(i), info.shape[1], rows)) for i in picked]


def _spread(checkpoint: Checkpoint, name: str, index: int | None, total: int, wanted: int) -> F32:
    """``wanted`` rows in up to 8 runs spread over the tensor: runs cost fewer reads than single rows."""
    if wanted >= total:
        return checkpoint.read(name, expert=index)
    runs = min(8, wanted)
    length = wanted // runs
    starts = np.linspace(0, total - length, runs).astype(int)
    return np.concatenate([checkpoint.read(name, expert=index, rows=slice(int(s), int(s) + length)) for s in starts])


def relative_error(
    samples: Sequence[Sample], info: TensorInfo, kind: str, stats: Stats | None, kernels: Kernels
) -> float:
    """Σ w (x − q(x))² / Σ w x² over the samples, w the importance vector of each slice (ones without)."""
    if kind in ("F32", info.type.name):
        return 0.0
    lost = total = 0.0
    n = info.shape[-1]
    for sample in samples:
        vector = importance(info, sample.index, kind, stats)
        back = kernels.dequantize(kernels.quantize(sample.rows, kind, vector), kind, n)
        weights = np.ones(n, np.float32) if vector is None else vector
        lost += float((np.square(sample.rows - back, dtype=np.float64) @ weights).sum())
        total += float((np.square(sample.rows, dtype=np.float64) @ weights).sum())
    return lost / total if total > 0 else 0.0


def measure_errors(
    checkpoint: Checkpoint,
    candidates: Mapping[str, Sequence[str]],
    kept: Mapping[int, tuple[int, ...]],
    stats: Stats | None,
    kernels: Kernels,
    threads: int,
    report: Report,
    sampling: Sampling = Sampling(),
) -> dict[str, dict[str, float]]:
    """Relative error by tensor and candidate type; deterministic whatever the number of threads."""
    for kind in sorted({kind for kinds in candidates.values() for kind in kinds}):
        kernels.prepare(kind)
    values = min(sampling.per_tensor, sampling.values // max(len(candidates), 1))

    def one(name: str) -> dict[str, float]:
        info = checkpoint.tensors[name]
        slices = kept.get(info.layer) if info.by_expert and info.layer is not None else None
        samples = sample_rows(checkpoint, info, slices, values, sampling.slices)
        return {kind: relative_error(samples, info, kind, stats, kernels) for kind in candidates[name]}

    errors: dict[str, dict[str, float]] = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, result in zip(candidates, pool.map(one, candidates), strict=True):
            errors[name] = result
            report(len(errors), len(candidates))
    return errors
