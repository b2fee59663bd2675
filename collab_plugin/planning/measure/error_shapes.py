"""What a tensor's quantization error adds to its products, from its values and the importance matrix."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.engines.disturbance import F32, ErrorShape
from collab_plugin.progress import Advance
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector

TILE_VALUES = 2**23
"""Values of a matrix that are read at a time."""
_ANY = "Q8_0"  # importance vectors do not depend on the type


def error_shapes(
    checkpoint: Checkpoint, names: Sequence[str], matrix: ImportanceMatrix | None, threads: int, report: Advance
) -> dict[str, ErrorShape]:
    """The shapes of the errors of the tensors ``names``: of every row of every expert (or head).

    All values are read once. Loud rows have loud errors, and which ones are loud differs from expert to expert.
    """
    jobs = [(name, index) for name in names for index in _slices(checkpoint.tensors[name])]
    parts: dict[str, list[tuple[F32, F32, float]]] = {name: [] for name in names}

    def one(job: tuple[str, int | None]) -> tuple[F32, F32, float]:
        info = checkpoint.tensors[job[0]]
        weights = _weights(info, job[1], matrix)
        return *_energies(checkpoint, info, job[1], weights), float(weights.sum())

    with ThreadPoolExecutor(threads) as pool:
        for done, (job, part) in enumerate(zip(jobs, pool.map(one, jobs), strict=True), 1):
            parts[job[0]].append(part)
            report(done, len(jobs))
    return {
        name: ErrorShape(
            energy=np.stack([energy for energy, _, _ in found]),
            inputs=np.array([inputs for _, _, inputs in found], np.float32),
            plain=np.stack([plain for _, plain, _ in found]),
        )
        for name, found in parts.items()
    }


def _slices(info: TensorInfo) -> Sequence[int | None]:
    return [None] if len(info.shape) == 2 else range(info.shape[0])


def _weights(info: TensorInfo, index: int | None, matrix: ImportanceMatrix | None) -> F32:
    vector = importance_vector(info, index, _ANY, matrix)
    # A column that nothing was seen of still has a token's activations: never all zero.
    return np.ones(info.shape[-1], np.float32) if vector is None or not vector.any() else vector


def _energies(checkpoint: Checkpoint, info: TensorInfo, index: int | None, weights: F32) -> tuple[F32, F32]:
    """Σ_j w_j W_ij² and Σ_j W_ij² of every row i of a slice, f32[rows] each."""
    rows, n = info.shape[-2:]
    step = max(1, TILE_VALUES // n)
    both = np.stack([weights, np.ones_like(weights)], 1)
    parts = [
        np.square(checkpoint.read(info.name, expert=index, rows=slice(start, start + step))) @ both
        for start in range(0, rows, step)
    ]
    energy, plain = np.concatenate(parts).T
    return np.ascontiguousarray(energy, np.float32), np.ascontiguousarray(plain, np.float32)
