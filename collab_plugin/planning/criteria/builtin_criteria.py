"""The criteria that come with the project.

Normalisation ("layer-max"): within a layer, frequency and score are each divided by their largest
value before they are mixed. The paper (arXiv 2509.25689 eq. 1) leaves this open, and on DeepSeek-V3 it
changes 9 to 18 % of the kept set (docs/sources.md, V3 routing); it is recorded in every plan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collab_plugin.planning.criteria.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.planning.options import Option, OptionValue
from collab_plugin.stats.stats import LayerRouting

NORMALISATION = "layer-max"
F64 = NDArray[np.float64]


def _scaled(values: F64) -> F64:
    top = values.max()
    return values / top if top > 0 else np.zeros_like(values)


def _mean_when_selected(sums: F64 | None, routing: LayerRouting) -> F64:
    if sums is None:
        raise ValueError("the statistics have no router weights")
    return sums / np.maximum(routing.count, 1)


def freq(routing: LayerRouting, options: CriterionOptions) -> F64:
    """f_e: share of tokens that selected expert e, scaled to the layer's largest."""
    return _scaled(routing.count.astype(np.float64))


def score(routing: LayerRouting, options: CriterionOptions) -> F64:
    """s_e: mean router weight of expert e when selected, scaled to the layer's largest."""
    return _scaled(_mean_when_selected(routing.weight_sum, routing))


def freq_score(routing: LayerRouting, options: CriterionOptions) -> F64:
    """I_e = α f_e + (1 − α) s_e (arXiv 2509.25689 eq. 1)."""
    alpha = options.number("alpha")
    return alpha * freq(routing, options) + (1 - alpha) * score(routing, options)


def reap(routing: LayerRouting, options: CriterionOptions) -> F64:
    """S_e = mean over the tokens that selected e of router weight × ‖output of e‖₂ (arXiv 2510.13999)."""
    return _scaled(_mean_when_selected(routing.reap_sum, routing))


def mass(routing: LayerRouting, options: CriterionOptions) -> F64:
    """M_e = Σ over the tokens that selected e of router weight × ‖output of e‖₂: REAP without its mean.

    What the layer's output loses with the expert; an expert of huge outputs ("super expert") is kept by it.
    """
    if routing.reap_sum is None:
        raise ValueError("the statistics have no REAP sums")
    return _scaled(routing.reap_sum)


def random(routing: LayerRouting, options: CriterionOptions) -> F64:
    """Uniform random numbers from the option ``seed`` and the layer's number: the baseline."""
    return np.random.default_rng((int(options.number("seed")), options.layer)).random(len(routing.count))


def _not_a_share(value: OptionValue) -> str | None:
    return None if 0 <= float(value) <= 1 else "is not between 0 and 1"


def _not_a_seed(value: OptionValue) -> str | None:
    return None if int(value) >= 0 else "is negative"


ALPHA = Option("alpha", 0.5, "weight of frequency, from 0 to 1", _not_a_share)
SEED = Option("seed", 0, "number that the random choice starts from", _not_a_seed)
FREQ = ImportanceCriterion("freq", "activation frequency", freq)
FREQ_SCORE = ImportanceCriterion(
    "freq-score",
    "the paper's α·frequency + (1−α)·score",
    freq_score,
    ("weight_sum",),
    options=(ALPHA,),
    without_weights=FREQ,
)
REAP = ImportanceCriterion("reap", "router weight × expert output norm (REAP)", reap, ("reap_sum",))
MASS = ImportanceCriterion("mass", "router weight × expert output norm, summed over its tokens", mass, ("reap_sum",))
AUTO = ImportanceCriterion(
    "auto",
    "of freq-score, mass and reap the one whose probed prunings cost least; unprobed freq-score (default)",
    freq_score,
    ("weight_sum",),
    options=(ALPHA,),
    without_weights=FREQ,
    among=(FREQ_SCORE, MASS, REAP),
)
CRITERIA = (
    AUTO,
    FREQ_SCORE,
    REAP,
    MASS,
    FREQ,
    ImportanceCriterion("score", "mean router weight when selected", score, ("weight_sum",)),
    ImportanceCriterion("random", "a seeded random choice, as a baseline", random, options=(SEED,), unseen="as-scored"),
)
