"""How much larger or smaller a target's weights seem to be than they are: the scale check of the logits level.

A factor of 1.01 on one tensor moves the logits less than the rounding of activations does, but always in one
direction, which the pack has (pack/scales.py). The error of some hundred positions is fitted with it; what
rounding adds has no such direction and averages out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_conformance.pack.scale_directions import Scales, centred

F64 = NDArray[np.float64]
RIDGE = 0.1
"""Of the errors' mean variance, added to their covariance before it is inverted."""


def scale_errors(scales: Scales, logits: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Relative error of each tensor's scale, by name, of a target's ``logits`` [tokens, vocabulary] of the prompt.

    Generalised least squares, one tensor at a time: positions are weighted by their error, so that one where a
    router chose otherwise counts little, and columns by the inverse covariance of the errors. That covariance
    holds the effect itself, so that an estimate is up to a third too small.
    """
    tokens = len(scales.logits)
    error = centred(logits[:tokens, scales.columns] - scales.logits.astype(np.float64))
    directions = {name: centred(values) for name, values in scales.directions.items()}
    weights, whitening = _weights(error)
    white = (error * weights) @ whitening
    return {name: _slope((g * weights) @ whitening, white) for name, g in directions.items()}


def _weights(error: F64) -> tuple[F64, F64]:
    """Weights f64[tokens, 1], and W f64[c, c] with W Wᵀ the inverse covariance of the weighted errors."""
    power = np.square(error).sum(-1, keepdims=True)
    middle = float(np.median(power))
    if not middle:  # a target that gives the reference's very logits
        return np.ones_like(power), np.eye(error.shape[1])
    weights = 1.0 / np.sqrt(middle + power)
    weighted = error * weights
    values, vectors = np.linalg.eigh(weighted.T @ weighted / len(error))
    values = np.maximum(values, 0.0) + RIDGE * values.mean()
    return weights, vectors / np.sqrt(values)


def _slope(direction: F64, error: F64) -> float:
    return float((direction * error).sum() / np.square(direction).sum())


def worst(errors: Mapping[str, float]) -> float:
    """The largest error of a scale, in either direction."""
    return max(map(abs, errors.values()))
