"""What an importance criterion is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collab_plugin.planning.options import Option, OptionValue, option_values
from collab_plugin.stats.stats import LayerRouting


@dataclass(frozen=True)
class CriterionOptions:
    """Values of the options that a criterion declares, ``options["alpha"]``, and the ``layer`` that is scored."""

    values: Mapping[str, OptionValue] = field(default_factory=dict)
    layer: int = 0

    def __getitem__(self, name: str) -> OptionValue:
        return self.values[name]

    def number(self, name: str) -> float:
        """The value of an option that is a number."""
        return float(self.values[name])


@dataclass(frozen=True)
class ImportanceCriterion:
    """Scores the experts of one layer; more is better, the weakest are pruned.

    ``score(routing, options)`` returns f64[E], finite. ``needs`` names the statistics it reads
    beyond counts ("weight_sum", "reap_sum"): plan refuses it, saying so, when they are missing, unless
    ``without_weights`` is the criterion to use then. ``options``: what it can be told.
    ``unseen``: experts never selected in calibration get the "median" score of the others, because they are unknown
    rather than worthless, or are taken "as-scored". ``among``: criteria of which the one is taken whose probed
    prunings cost least (`least_costly`); without probes `score` counts.
    """

    name: str
    description: str
    score: Callable[[LayerRouting, CriterionOptions], NDArray[np.float64]]
    needs: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    without_weights: ImportanceCriterion | None = None
    unseen: Literal["median", "as-scored"] = "median"
    among: tuple[ImportanceCriterion, ...] = ()

    def values(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Value of every option, ``given`` or its default; CollabError for what is not an option of it."""
        return option_values(self.options, given, f"criterion {self.name}")
