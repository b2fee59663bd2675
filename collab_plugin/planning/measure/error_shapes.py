"""What a tensor's quantization error adds to its products, from its values and the importance matrix."""

from __future__ import annotations

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.engines.disturbance import F32, ErrorShape
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector

SLICES = 32
"""Experts of a tensor that are looked at; the others are taken to be like their mean."""
ROWS = 64
"""Rows of an expert that are looked at, evenly spread."""
TILE_VALUES = 2**23
"""Values of a matrix that are read at a time."""
_ANY = "Q8_0"  # importance vectors do not depend on the type


def error_shape(checkpoint: Checkpoint, info: TensorInfo, matrix: ImportanceMatrix | None) -> ErrorShape:
    """The shape of ``info``'s error: of every row of a matrix, and the mean row of each expert (or head)."""
    if len(info.shape) == 2:
        weights = _weights(info, None, matrix)
        return ErrorShape(_energies(checkpoint, info, weights)[None], np.array([weights.sum()], np.float32))
    count = info.shape[0]
    inputs = np.array([_weights(info, index, matrix).sum() for index in range(count)], np.float32)
    looked = np.unique(np.linspace(0, count - 1, min(count, SLICES)).astype(int))
    ratios = np.array([_mean_energy(checkpoint, info, int(i), matrix) / max(inputs[i], 1e-30) for i in looked])
    per_slice = np.full(count, ratios.mean(), np.float64)
    per_slice[looked] = ratios
    return ErrorShape(np.asarray(per_slice * inputs, np.float32)[:, None], inputs)


def _weights(info: TensorInfo, index: int | None, matrix: ImportanceMatrix | None) -> F32:
    vector = importance_vector(info, index, _ANY, matrix)
    # A column that nothing was seen of still has a token's activations: never all zero.
    return np.ones(info.shape[-1], np.float32) if vector is None or not vector.any() else vector


def _energies(checkpoint: Checkpoint, info: TensorInfo, weights: F32) -> F32:
    """Σ_j w_j W_ij² of every row i, f32[rows]."""
    step = max(1, TILE_VALUES // info.shape[1])
    parts = [
        np.square(checkpoint.read(info.name, rows=slice(start, start + step))) @ weights
        for start in range(0, info.shape[0], step)
    ]
    return np.asarray(np.concatenate(parts), np.float32)


def _mean_energy(checkpoint: Checkpoint, info: TensorInfo, index: int, matrix: ImportanceMatrix | None) -> float:
    """Σ_j w_j W_ij², a mean over rows i of one slice."""
    rows = info.shape[1]
    step = max(1, rows // ROWS)
    values = checkpoint.read(info.name, expert=index, rows=slice(0, rows, step))
    return float((np.square(values) @ _weights(info, index, matrix)).mean())
