"""Traces that are drawn: which experts tokens choose one after another, with a skew and a locality that are stated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I16 = NDArray[np.int16]
SPANS = (2.0, 20.0, 300.0)
"""Tokens after which the wanderings of logits have forgotten two thirds of what they were."""


def drawn(logits: F64, used: int, tokens: int, spread: float, seed: int = 0) -> I16:
    """i16[tokens, layers, used] by ``logits`` [layers, experts]: the largest of logit + wanderings + Gumbel noise.

    A wandering is a Gaussian AR(1) of standard deviation ``spread`` and one of the `SPANS`, of each expert by itself:
    so an expert that was chosen is the likelier to be chosen again the more lately it was, over several scales of time.
    """
    random = np.random.default_rng(seed)
    keep = np.exp(-1 / np.array(SPANS))[:, None, None]
    wandering = random.standard_normal((len(SPANS), *logits.shape))
    chosen = np.empty((tokens, len(logits), used), np.int16)
    for token in range(tokens):
        keys = logits + spread * wandering.sum(0) + random.gumbel(size=logits.shape)
        chosen[token] = np.argpartition(-keys, used, axis=1)[:, :used]
        wandering = keep * wandering + np.sqrt(1 - keep**2) * random.standard_normal(wandering.shape)
    return chosen


def drawn_keeping(logits: F64, used: int, tokens: int, kept: float, seed: int = 0) -> I16:
    """The same with one scale of time: a token keeps each choice of the token before it with the probability ``kept``,
    and draws the rest by ``logits``."""
    random = np.random.default_rng(seed)
    chosen = np.empty((tokens, len(logits), used), np.int16)
    for token in range(tokens):
        keys = logits + random.gumbel(size=logits.shape)
        if token:
            rows, places = np.nonzero(random.random(chosen[token - 1].shape) < kept)
            keys[rows, chosen[token - 1][rows, places]] = np.inf
        chosen[token] = np.argpartition(-keys, used, axis=1)[:, :used]
    return chosen
