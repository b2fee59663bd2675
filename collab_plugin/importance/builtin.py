"""The built-in criteria. Why these normalisations and no others: docs/method.md."""

from __future__ import annotations

import numpy as np

from collab_plugin.importance.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.stats import F64, LayerRouting

NORMALISATION = "layer-max: f = count / max(count), s = (weight_sum / count) / max(weight_sum / count)"
"""Recorded in every plan whose criterion mixes or scales frequency and score."""


def frequency(routing: LayerRouting, options: CriterionOptions) -> F64:
    """Return f: activation counts over the layer's largest count, f64[E] in 0..1."""
    return _by_maximum(routing.count.astype(np.float64))


def score(routing: LayerRouting, options: CriterionOptions) -> F64:
    """Return s: mean router weight when selected over the layer's largest mean, f64[E] in 0..1."""
    return _by_maximum(_mean_when_selected(routing, routing.weight_sum, "weight_sum"))


def frequency_and_score(routing: LayerRouting, options: CriterionOptions) -> F64:
    """Return I = alpha f + (1 - alpha) s (arXiv 2509.25689), f64[E] in 0..1."""
    return options.alpha * frequency(routing, options) + (1 - options.alpha) * score(routing, options)


def reap(routing: LayerRouting, options: CriterionOptions) -> F64:
    """Return the mean of router weight x L2 norm of the expert's output, f64[E].

    The mean is over the tokens that selected the expert, not over all tokens (REAP, arXiv
    2510.13999 eq. 9: the sum over the active tokens X_j is divided by |X_j|).
    """
    return _mean_when_selected(routing, routing.reap_sum, "reap_sum")


def random(routing: LayerRouting, options: CriterionOptions) -> F64:
    """Return uniform random numbers that depend on seed and layer alone: a baseline."""
    return np.random.default_rng([options.seed, options.layer]).random(len(routing.count))


def _mean_when_selected(routing: LayerRouting, total: F64 | None, name: str) -> F64:
    if total is None:
        raise ValueError(f"the statistics hold no {name}")
    return np.divide(total, routing.count, out=np.zeros(len(total)), where=routing.count > 0)


def _by_maximum(values: F64) -> F64:
    largest = values.max(initial=0.0)
    return values / largest if largest > 0 else np.zeros_like(values)


CRITERIA = (
    ImportanceCriterion(
        "freq-score",
        "the paper's alpha x activation frequency + (1 - alpha) x mean router weight when selected",
        frequency_and_score,
        ("weight_sum",),
    ),
    ImportanceCriterion(
        "reap", "mean router weight x norm of the expert's output, over its own tokens", reap, ("reap_sum",)
    ),
    ImportanceCriterion("freq", "activation frequency alone", frequency),
    ImportanceCriterion("score", "mean router weight when selected, alone", score, ("weight_sum",)),
    ImportanceCriterion("random", "random choice by seed: a baseline", random),
)
