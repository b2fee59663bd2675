"""What `verify` measures: two results of the same computation in, numbers out. Nothing is judged here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
F64 = NDArray[np.float64]


def nmse(reference: Floats, measured: Floats) -> float:
    """Normalised mean squared error, sum (measured - reference)² / sum reference², as llama.cpp's
    test-backend-ops has it.

    NaN when ``measured`` holds a value that is not finite; 0 or infinity when the reference is all zero.
    ValueError for unlike shapes.
    """
    a, b = _pair(reference, measured)
    if not np.isfinite(b).all():
        return float("nan")
    error, power = float(np.square(b - a).sum()), float(np.square(a).sum())
    if power:
        return error / power
    return float("inf") if error else 0.0


def log_softmax(logits: Floats) -> F64:
    """Log-probabilities in nats along the last axis, in float64."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


@dataclass(frozen=True)
class Divergence:
    """KL divergences of many positions in nats: mean, 99th percentile (linear), largest."""

    mean: float
    p99: float
    largest: float


def kld(reference: Floats, measured: Floats) -> F64:
    """KL(reference || measured) in nats at each position, f64[n], of logits [n, vocabulary].

    Never negative (rounding aside, cut at 0); NaN where ``measured`` is not finite.
    """
    a, b = _pair(reference, measured)
    sound = np.asarray(np.isfinite(b).all(-1))
    p, q = log_softmax(a), log_softmax(np.where(sound[..., None], b, 0.0))
    return np.where(sound, np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0), np.nan)


def kld_of_top(reference_ids: Integers, reference: Floats, ids: Integers, measured: Floats) -> F64:
    """A lower bound of the KL divergence in nats at each position, for engines that tell the top only.

    Log-probabilities [n, a] and [n, b] with their token ids. Tokens in both lists count one by one, all others
    as one event: joining events never adds divergence, so the true one is at least this large.
    """
    if len(reference_ids) != len(ids):
        raise ValueError(f"{len(reference_ids)} and {len(ids)} positions")
    result = np.empty(len(ids))
    for row in range(len(ids)):
        _, left, right = np.intersect1d(reference_ids[row], ids[row], return_indices=True)
        result[row] = _joined(
            np.asarray(reference[row], np.float64)[left], np.asarray(measured[row], np.float64)[right]
        )
    return result


_REST = 1e-6


def _joined(p: F64, q: F64) -> float:
    """KL divergence of log-probabilities ``p`` and ``q``, what they leave to 1 being one more event."""
    rest_p, rest_q = (max(1.0 - float(np.exp(x).sum()), 0.0) for x in (p, q))
    total = float((np.exp(p) * (p - q)).sum())
    # Below float32's resolution of a sum near 1 the rest is rounding: then what it could take away at most, up to
    # 1.4e-5 nats, is taken, for a bound that holds.
    known = max(rest_p, _REST)
    share = known * float(np.log(known / max(rest_q, _REST)))
    total += share if rest_p > _REST else min(share, 0.0)
    return max(total, 0.0) if np.isfinite(total) else float("nan")


def summary(divergences: Floats) -> Divergence:
    """The figures of `kld`'s result, f64[n], n >= 1; all NaN when one value is."""
    values = np.asarray(divergences, np.float64)
    if not values.size:
        raise ValueError("no positions")
    return Divergence(float(values.mean()), float(np.quantile(values, 0.99)), float(values.max()))


def same_top1(reference: Integers, measured: Integers) -> float:
    """Share of positions with the same most probable token; token ids [n] of both sides, n >= 1."""
    if reference.shape != measured.shape or not reference.size:
        raise ValueError(f"{reference.shape} and {measured.shape} token ids")
    return float((reference == measured).mean())


@dataclass(frozen=True)
class RoutingAgreement:
    """Decisions, one a token and layer, by what became of them; they add up to ``decisions``.

    ``equal``: the same set of experts. ``near_ties``: another set where the reference's margin was below the
    threshold. ``downstream``: another set at a token whose earlier layer fell to a near-tie, after which
    both sides compute different things. ``different``: everything else, which no rounding excuses.
    """

    decisions: int
    equal: int
    near_ties: int
    downstream: int
    different: int

    @property
    def share(self) -> float:
        """Equal decisions over those that should be: near-ties and what followed them left out."""
        judged = self.equal + self.different
        return self.equal / judged if judged else 1.0


def routing_agreement(reference: Integers, margins: Floats, measured: Integers, threshold: float) -> RoutingAgreement:
    """Compare expert ids [layers, tokens, k], in any order within a token, layers in order of computation.

    ``margins`` [layers, tokens]: selection score of the last expert chosen over the first one left out, by the
    reference; below ``threshold`` the choice is a near-tie. ValueError for unlike shapes.
    """
    if reference.shape != measured.shape or margins.shape != reference.shape[:2]:
        raise ValueError(f"{reference.shape} and {measured.shape} ids with {margins.shape} margins")
    equal = (np.sort(reference, -1) == np.sort(measured, -1)).all(-1)
    near = ~equal & (np.asarray(margins) < threshold)
    # A token is excused after its first difference when that one was a near-tie.
    excused = np.zeros(reference.shape[1], bool)
    guilty = np.zeros(reference.shape[1], bool)
    counts = dict.fromkeys(("near_ties", "downstream", "different"), 0)
    for layer in range(len(reference)):
        unlike = ~equal[layer]
        after = unlike & excused & ~guilty
        ties = near[layer] & ~after & ~guilty
        wrong = unlike & ~after & ~ties
        counts["downstream"] += int(after.sum())
        counts["near_ties"] += int(ties.sum())
        counts["different"] += int(wrong.sum())
        excused |= ties
        guilty |= wrong
    return RoutingAgreement(equal.size, int(equal.sum()), **counts)


@dataclass(frozen=True)
class FirstDifference:
    """Where two greedy texts part: ``step`` None when they do not; ``accepted`` when they do not, or when each
    side's token is in the other's top there."""

    step: int | None
    accepted: bool


def first_difference(reference: Integers, measured: Integers) -> FirstDifference:
    """Compare greedy texts by vLLM's rule (`check_logprobs_close`): at the first step with different tokens each
    must be in the other's top, and nothing after it counts.

    Token ids [steps, 5] by falling probability; column 0 was taken. ValueError for different numbers of steps.
    """
    if len(reference) != len(measured):
        raise ValueError(f"{len(reference)} and {len(measured)} steps")
    apart = np.flatnonzero(reference[:, 0] != measured[:, 0])
    if not apart.size:
        return FirstDifference(None, True)
    step = int(apart[0])
    accepted = reference[step, 0] in measured[step] and measured[step, 0] in reference[step]
    return FirstDifference(step, bool(accepted))


def _pair(reference: Floats, measured: Floats) -> tuple[F64, F64]:
    if reference.shape != measured.shape:
        raise ValueError(f"shapes {reference.shape} and {measured.shape} differ")
    return np.asarray(reference, np.float64), np.asarray(measured, np.float64)
