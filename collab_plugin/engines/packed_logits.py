"""Logits in 16 bits each: how far each lies below the position's largest, in steps that fit the position.

A row of n logits is n + 4 words: the largest and the step as float32, then a word for each logit. Word 0 is the
largest alone, the first of several; 1 is a quarter of a step below it, for others within half a step; k from 2 on is
k - 1 steps below. So the most likely token stays the most likely, and no logit moves by more than half a step. A step
is the span of the row's logits, or `DEEPEST` where that is less, over 65,534. What lies deeper than `DEEPEST` nats
stays that deep: a token that is less likely than the likeliest by e^64.

How exact a KL divergence from such logits is: with e the most that a logit moves, no probability changes by more than
the factor exp(2e), so that KL differs by at most (exp(2e) - 1) (KL + 2/e' + 2e), where e' is Euler's number
(`kld_bound`): the sum of q |ln q - ln p| is at most KL + 2/e', because -t ln t is at most 1/e'.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Words = NDArray[np.uint16]

HEAD = 4
"""Words before those of the logits."""
DEEPEST = 64.0
_STEPS = 65534
MOST_MOVED = DEEPEST / _STEPS / 2
"""No logit within `DEEPEST` of the largest moves by more, but for float32's own rounding."""


def pack_logits(logits: F32) -> Words:
    """uint16[n, V + 4] of finite ``logits`` f32[n, V]."""
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1)
    largest = logits[rows, best].astype(np.float32)
    below = largest[:, None] - logits
    np.minimum(below, np.float32(DEEPEST), out=below)
    step = (below.max(axis=1) / _STEPS).astype(np.float32)
    step[step <= 0] = 1e-30  # all logits are the same, and stay so
    below /= step[:, None]
    words = np.empty((len(logits), HEAD + logits.shape[1]), np.uint16)
    words[:, :HEAD] = np.ascontiguousarray(np.stack([largest, step], axis=1)).view(np.uint16)
    np.add(np.rint(below, out=below), 1, out=words[:, HEAD:], casting="unsafe")
    words[rows, HEAD + best] = 0
    return words


def unpack_logits(words: Words) -> F32:
    """f32[n, V] of what `pack_logits` made."""
    largest, step = np.ascontiguousarray(words[:, :HEAD]).view(np.float32).T
    logits = words[:, HEAD:].astype(np.float32)
    logits -= 1
    logits[words[:, HEAD:] == 1] = 0.25
    logits *= -step[:, None]
    logits += largest[:, None]
    logits[np.arange(len(words)), words[:, HEAD:].argmin(axis=1)] = largest
    return logits


def kld_bound(kld: float, moved: float = MOST_MOVED) -> float:
    """Nats by which a KL divergence of ``kld`` may be off when no logit moved by more than ``moved``."""
    return math.expm1(2 * moved) * (kld + 2 / math.e + 2 * moved)
