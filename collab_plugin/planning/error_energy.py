"""How large the error of a tensor is in what the tensor writes: before it is quantized, at a relative error of 1.

method.md §6: of a matrix W with relative error ε and inputs of mean squares w, the product gains noise of the squared
norm ε Σ_ij w_j W_ij², a mean over tokens. That sum is a tensor's energy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector
from collab_plugin.stats.stats import LayerRouting

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
SLICES = 8
"""Experts of a tensor that are looked at, evenly spread."""
ROWS = 128
"""Rows of a matrix that are looked at, in runs that are evenly spread."""
RUNS = 8
_ANY = "Q8_0"  # importance vectors do not depend on the type


def error_energy(
    checkpoint: Checkpoint, info: TensorInfo, matrix: ImportanceMatrix, routing: LayerRouting | None, topology: Topology
) -> float | None:
    """Squared norm of a token's error in the product of ``info`` at a relative error of 1; None without its importance.

    Of experts: what the router's weights leave of it, summed over those that a token uses.
    """
    if info.name not in matrix.entries:
        return None
    if len(info.shape) == 2:
        return _energy(checkpoint, info, None, matrix)
    slices = info.shape[0]
    shares = _shares(routing, topology) if info.by_expert else np.ones(slices)
    if shares is None or len(shares) != slices or not shares.any():
        return None
    looked = np.unique(np.linspace(0, slices - 1, min(slices, SLICES)).astype(int))
    looked = looked if shares[looked].any() else np.argsort(shares)[-SLICES:]
    found = np.array([_energy(checkpoint, info, int(index), matrix) for index in looked])
    return float(shares.sum() * (shares[looked] @ found) / shares[looked].sum())


def _shares(routing: LayerRouting | None, topology: Topology) -> F64 | None:
    """A token's squared router weight for each expert, a mean over tokens: f64[E]."""
    if routing is None or not routing.count.any():
        return None
    chosen = routing.count / routing.count.sum() * topology.experts_used
    if routing.weight_sum is None:
        return np.asarray(chosen * (topology.weights_scale / topology.experts_used) ** 2, np.float64)
    return np.asarray(chosen * (routing.weight_sum / np.maximum(routing.count, 1)) ** 2, np.float64)


def _energy(checkpoint: Checkpoint, info: TensorInfo, index: int | None, matrix: ImportanceMatrix) -> float:
    """Σ_ij w_j W_ij² of one slice, from some of its rows."""
    vector = importance_vector(info, index, _ANY, matrix)
    assert vector is not None  # error_energy() looked
    return _rows(checkpoint, info, index, vector)


def plain_energy(checkpoint: Checkpoint, info: TensorInfo, weights: F32 | None = None) -> float:
    """Σ_j w_j W_ij² of a row, a mean over rows of a matrix; ``weights`` None: ones."""
    vector = np.ones(info.shape[-1], np.float32) if weights is None else weights
    return _rows(checkpoint, info, None, vector) / info.shape[-2]


def _rows(checkpoint: Checkpoint, info: TensorInfo, index: int | None, vector: F32) -> float:
    total = info.shape[-2]
    wanted = min(ROWS, total)
    length = -(-wanted // RUNS)
    starts = np.unique(np.linspace(0, total - length, -(-wanted // length)).astype(int))
    runs = [checkpoint.read(info.name, expert=index, rows=slice(int(s), int(s) + length)) for s in starts]
    found = float(np.mean([(np.square(run, dtype=np.float64) @ vector).mean() for run in runs])) * total
    return found * _scale(checkpoint, info, index) ** 2


def _scale(checkpoint: Checkpoint, info: TensorInfo, index: int | None) -> float:
    """What the products of the matrix are multiplied with: experts may have a scale each beside them (NVFP4)."""
    name = f"{info.name.removesuffix('weight')}scale"
    if index is None or name not in checkpoint.tensors or checkpoint.tensors[name].shape != info.shape[:1]:
        return 1.0
    return float(checkpoint.read(name)[index])
