"""What an importance criterion is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.stats.stats import LayerRouting


@dataclass(frozen=True)
class CriterionOptions:
    """Parameters a criterion may use: ``alpha`` of freq-score, ``seed`` of random; ``layer`` index."""

    alpha: float = 0.5
    seed: int = 0
    layer: int = 0


@dataclass(frozen=True)
class ImportanceCriterion:
    """Scores the experts of one layer; more is better, the weakest are pruned.

    ``score(routing, options)`` returns f64[E], finite. ``needs`` names the statistics it reads
    beyond counts ("weight_sum", "reap_sum"): plan refuses it, saying so, when they are missing.
    Experts never seen are handled by the caller (pruning.py), whatever the score says.
    """

    name: str
    description: str
    score: Callable[[LayerRouting, CriterionOptions], NDArray[np.float64]]
    needs: tuple[str, ...] = ()
