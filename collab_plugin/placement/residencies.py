"""The built-in rules of which experts stay in the fast memory while a model runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from collab_plugin.placement.policy import F64, Mask, Residency


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


class TwoCounts(Residency):
    """Choices a step over a short time and over a long one, the latter ``weight`` times: what is chosen now counts,
    and what calibration saw is not forgotten at once."""

    def __init__(self, expected: F64, parameters: Mapping[str, float]) -> None:
        self._decays = parameters["short"], parameters["long"]
        self._shares = 1.0, parameters["weight"]
        self._counts = [DecayedCount(expected, {"decay": decay}) for decay in self._decays]

    def saw(self, chosen: Mask) -> None:
        for count in self._counts:
            count.saw(chosen)

    @property
    def worth(self) -> F64:
        parts = zip(self._counts, self._decays, self._shares, strict=True)
        return np.asarray(sum(share * (1 - decay) * count.worth for count, decay, share in parts))


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
