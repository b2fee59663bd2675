"""How much a type hurts a tensor: importance-weighted relative squared error on sampled values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.progress import Advance
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.quantize.known_errors import KnownErrors, error_key
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector

F32 = NDArray[np.float32]
BLOCK = 256
"""Every type's blocks divide it, so columns can be cut there."""


@dataclass(frozen=True)
class Sampling:
    """About ``values`` weights over all tensors and ``per_tensor`` of one, from up to ``slices`` experts.

    But at least a block of each slice. All 14 types of 2^21 values take about 8 CPU-seconds, the tables
    of IQ types 9 (measured: benchmarks/scale/deepseek_v3.py).
    """

    values: int = 2**21
    per_tensor: int = 2**18
    slices: int = 8


@dataclass(frozen=True)
class Sample:
    """Values f32[r, c] of slice ``index`` of the source, from column ``column`` on."""

    index: int | None
    column: int
    values: F32


def sample_values(
    checkpoint: Checkpoint, info: TensorInfo, slices: Sequence[int] | None, values: int, most_slices: int
) -> list[Sample]:
    """Evenly spaced rows of evenly spaced slices, about ``values`` weights: the same on every run."""
    picked: list[int | None] = [None]
    if len(info.shape) == 3:
        candidates = np.asarray(range(info.shape[0]) if slices is None else slices)
        picked = [int(i) for i in candidates[np.unique(np.linspace(0, len(candidates) - 1, most_slices).astype(int))]]
    each = values // len(picked)
    return [_sample(checkpoint, info, index, each, at / len(picked)) for at, index in enumerate(picked)]


def _sample(checkpoint: Checkpoint, info: TensorInfo, index: int | None, values: int, where: float) -> Sample:
    """Whole rows in up to 8 runs spread over the slice; when not even one row fits, some of its blocks."""
    total, n = info.shape[-2:]
    wanted = values // n
    if wanted == 0 and n % BLOCK == 0:
        width = max(1, values // BLOCK) * BLOCK
        row, column = int(where * total), int(where * (n - width) / BLOCK) * BLOCK
        found = checkpoint.read(info.name, expert=index, rows=slice(row, row + 1))
        return Sample(index, column, np.ascontiguousarray(found[:, column : column + width]))
    wanted = max(1, wanted)
    if wanted >= total:
        return Sample(index, 0, checkpoint.read(info.name, expert=index))
    runs = min(8, wanted)
    length = wanted // runs
    starts = np.linspace(0, total - length, runs).astype(int)
    rows = [checkpoint.read(info.name, expert=index, rows=slice(int(s), int(s) + length)) for s in starts]
    return Sample(index, 0, np.concatenate(rows))


def relative_error(
    samples: Sequence[Sample], info: TensorInfo, kind: str, imatrix: ImportanceMatrix | None, kernels: Kernels
) -> float:
    """Σ w (x − q(x))² / Σ w x² over the samples, w the importance vector of each slice (ones without)."""
    if _loses_nothing(info, kind):
        return 0.0
    lost = total = 0.0
    for sample in samples:
        n = sample.values.shape[1]
        vector = _importance(sample, info, kind, imatrix)
        weights = np.ones(n, np.float32) if vector is None else vector
        back = kernels.dequantize(kernels.quantize(sample.values, kind, None if vector is None else weights), kind, n)
        lost += float((np.square(sample.values - back, dtype=np.float64) @ weights).sum())
        total += float((np.square(sample.values, dtype=np.float64) @ weights).sum())
    return lost / total if total > 0 else 0.0


def _loses_nothing(info: TensorInfo, kind: str) -> bool:
    return kind in ("F32", info.type.name)


def _importance(sample: Sample, info: TensorInfo, kind: str, imatrix: ImportanceMatrix | None) -> F32 | None:
    """The importance vector of a sample's columns, f32[c]."""
    vector = importance_vector(info, sample.index, kind, imatrix)
    return None if vector is None else vector[sample.column : sample.column + sample.values.shape[1]]


class ErrorTable:
    """Relative errors by tensor and type, measured when first needed.

    ``kept``: the experts to sample, by layer (others are not looked at). ``known``: errors of earlier plans, which are
    not measured again. Deterministic whatever the number of threads.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kept: Mapping[int, tuple[int, ...]],
        imatrix: ImportanceMatrix | None,
        kernels: Kernels,
        threads: int,
        report: Advance,
        sampling: Sampling = Sampling(),
        known: KnownErrors | None = None,
    ) -> None:
        self.known = known
        self.checkpoint, self.kept, self.imatrix, self.kernels = checkpoint, kept, imatrix, kernels
        self.threads, self.report, self.sampling = threads, report, sampling
        self.errors: dict[str, dict[str, float]] = {}

    def measure(self, candidates: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        """Return errors of at least ``candidates``; only those not known yet are measured."""
        for name, kinds in candidates.items():
            free = {kind: 0.0 for kind in kinds if _loses_nothing(self.checkpoint.tensors[name], kind)}
            self.errors.setdefault(name, {}).update(free)
        todo = [
            (kind, name)
            for name, kinds in candidates.items()
            for kind in kinds
            if kind not in self.errors.get(name, {})
        ]
        names = list(dict.fromkeys(name for _, name in todo))
        values = min(self.sampling.per_tensor, self.sampling.values // max(len(candidates), 1))
        with ThreadPoolExecutor(self.threads) as pool:
            samples = dict(zip(names, pool.map(lambda name: self._samples(name, values), names), strict=True))
        keys = self._keys(todo, samples)
        known = self.known.find(list(keys.values())) if self.known else {}
        for (kind, name), key in keys.items():
            if key in known:
                self.errors.setdefault(name, {})[kind] = known[key]
        todo = [pair for pair in todo if pair not in keys or keys[pair] not in known]
        self._measure(todo, samples)
        if self.known and todo:
            self.known.keep({keys[kind, name]: self.errors[name][kind] for kind, name in todo})
        return self.errors

    def _measure(self, todo: list[tuple[str, str]], samples: Mapping[str, Sequence[Sample]]) -> None:
        # Types without tables are measured first, while those that take longest to build are begun with.
        todo.sort(key=lambda pair: (_table_cost(pair[0]), pair[0]))
        kinds = sorted({kind for kind, _ in todo}, key=lambda kind: (_table_cost(kind) > 0, -_table_cost(kind)))
        with ThreadPoolExecutor(self.threads) as tables, ThreadPoolExecutor(self.threads) as pool:
            ready = {kind: tables.submit(self.kernels.prepare, kind) for kind in kinds}

            def one(pair: tuple[str, str]) -> float:
                kind, name = pair
                _wait(ready[kind])
                return relative_error(samples[name], self.checkpoint.tensors[name], kind, self.imatrix, self.kernels)

            for done, ((kind, name), error) in enumerate(zip(todo, pool.map(one, todo), strict=True)):
                self.errors.setdefault(name, {})[kind] = error
                self.report(done + 1, len(todo))

    def _keys(
        self, todo: Sequence[tuple[str, str]], samples: Mapping[str, Sequence[Sample]]
    ) -> dict[tuple[str, str], bytes]:
        """By type and tensor, under what its error is known to other plans; empty where nothing is remembered."""
        if self.known is None:
            return {}
        version = self.kernels.version()
        infos = self.checkpoint.tensors
        return {
            (kind, name): error_key(
                version, kind, ((s.values, _importance(s, infos[name], kind, self.imatrix)) for s in samples[name])
            )
            for kind, name in todo
        }

    def _samples(self, name: str, values: int) -> list[Sample]:
        info = self.checkpoint.tensors[name]
        slices = self.kept.get(info.layer) if info.by_expert and info.layer is not None else None
        return sample_values(self.checkpoint, info, slices, values, self.sampling.slices)


def _table_cost(kind: str) -> float:
    """Order in which types are measured: those whose tables take longest to build come last."""
    return 0.0 if not kind.startswith("IQ") else 10.0 - TYPES[kind].bits_per_weight


def _wait(future: Future[None]) -> None:
    future.result()
