"""The built-in rules of which experts stay in the fast memory while a model runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from collab_plugin.placement.policy import F64, Mask, Residency

SPANS = (2, 20, 300)
"""Steps after which a choice counts for a third of what it did at first."""
_EVEN = 1e-3
"""Share of calibration's choices that is spread evenly, so that no expert is thought impossible."""
_LEAST = 1e-4
"""Weight that every part keeps, so that it can come back."""


class LastUsed(Residency):
    """LRU: worth is the step of the last use. Experts not yet used rank by what is expected of them."""

    def __init__(self, expected: F64, _: Mapping[str, float]) -> None:
        # From -1 to 0, the most expected nearest to 0: before every step.
        self._worth: F64 = expected / np.maximum(expected.max(1, keepdims=True), 1e-300) - 1
        self._step = 0

    def saw(self, chosen: Mask) -> None:
        self._step += 1
        np.copyto(self._worth, self._step, where=chosen)

    @property
    def worth(self) -> F64:
        return self._worth


class DecayedCount(Residency):
    """LFU with decay: a count of uses that loses the share 1 - ``decay`` each step. Starts as what a long run of the
    expected choices would have left."""

    def __init__(self, expected: F64, parameters: Mapping[str, float]) -> None:
        self._decay = parameters["decay"]
        self._count = expected / (1 - self._decay)

    def saw(self, chosen: Mask) -> None:
        self._count *= self._decay
        self._count += chosen

    @property
    def worth(self) -> F64:
        return self._count


class Foretold(Residency):
    """The probability that the next choice falls on an expert: a mixture of calibration's shares and of shares counted
    over several spans of time (`SPANS`).

    Each part weighs as much as it explained of what was chosen lately: one step of EM for the weights of a mixture, of
    size ``rate`` (online EM, as cache language models are interpolated: Jelinek and Mercer 1980, Kuhn and De Mori
    1990). So a short memory counts where choices cluster in time, calibration where they do not, and a long memory once
    calibration no longer fits. ``trust``: calibration's weight at first.
    """

    def __init__(self, expected: F64, parameters: Mapping[str, float]) -> None:
        experts = expected.shape[1]
        total = expected.sum(1, keepdims=True)
        shares = (1 - _EVEN) * expected / np.maximum(total, 1e-300) + _EVEN / experts
        # What is expected may be less than a choice a step, where nothing but an order is known: so much less it is
        # trusted.
        known = parameters["trust"] * np.minimum(total, 1)
        self._keep = 1 - np.array([*(1 / span for span in SPANS), 0.0])[:, None, None]
        self._rate = parameters["rate"]
        self._parts = np.repeat(np.where(total > 0, shares, 1 / experts)[None], len(SPANS) + 1, 0)
        self._weights = np.concatenate([np.repeat((1 - known)[None] / len(SPANS), len(SPANS), 0), known[None]])
        self._mix()

    def saw(self, chosen: Mask) -> None:
        number = chosen.sum(1, keepdims=True)
        share = chosen / np.maximum(number, 1)
        explained = self._parts * (share / self._worth)
        reached = number > 0
        rate = self._rate * reached
        self._weights *= 1 - rate + rate * explained.sum(2, keepdims=True)
        keep = np.where(reached, self._keep, 1.0)
        self._parts *= keep
        self._parts += (1 - keep) * share
        self._mix()

    def _mix(self) -> None:
        np.maximum(self._weights, _LEAST, out=self._weights)
        self._worth = np.asarray((self._weights * self._parts).sum(0))

    @property
    def worth(self) -> F64:
        return self._worth


class CountOverAge(Residency):
    """LFRU: the decayed count of uses, divided by the steps since the last use."""

    def __init__(self, expected: F64, parameters: Mapping[str, float]) -> None:
        self._count = DecayedCount(expected, parameters)
        self._age = np.full(expected.shape, 1.0)

    def saw(self, chosen: Mask) -> None:
        self._count.saw(chosen)
        self._age += 1
        np.copyto(self._age, 1.0, where=chosen)

    @property
    def worth(self) -> F64:
        return np.asarray(self._count.worth / self._age)
