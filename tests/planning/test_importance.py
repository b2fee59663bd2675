"""The built-in criteria by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from collab_plugin.planning.criteria.builtin_criteria import CRITERIA, NORMALISATION
from collab_plugin.planning.criteria.choose_criterion import least_costly
from collab_plugin.planning.criteria.criterion import CriterionOptions
from collab_plugin.stats.sensitivity import PruningProbe
from collab_plugin.stats.stats import LayerRouting

BY_NAME = {criterion.name: criterion for criterion in CRITERIA}

# Ten tokens, top-2. Mean weights when selected: 0.5, 0.6, 0.25, 0 (never), mean REAP: 1, 3, 2, 0.
ROUTING = LayerRouting(
    10,
    np.array([8, 4, 8, 0]),
    np.array([4.0, 2.4, 2.0, 0.0]),
    np.array([8.0, 12.0, 16.0, 0.0]),
)


def _defaults(name: str) -> CriterionOptions:
    return CriterionOptions(BY_NAME[name].values({}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("freq", [1, 0.5, 1, 0]),
        ("score", [0.5 / 0.6, 1, 0.25 / 0.6, 0]),
        ("reap", [1 / 3, 1, 2 / 3, 0]),
        ("mass", [0.5, 0.75, 1, 0]),
        ("freq-score", [0.5 + 0.25 / 0.6, 0.75, 0.5 + 0.125 / 0.6, 0]),
    ],
)
def test_scores(name: str, expected: list[float]) -> None:
    scores = BY_NAME[name].score(ROUTING, _defaults(name))
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "same_as"), [(1.0, "freq"), (0.0, "score")])
def test_alpha_at_its_ends(alpha: float, same_as: str) -> None:
    options = CriterionOptions({"alpha": alpha})
    mixed = BY_NAME["freq-score"].score(ROUTING, options)
    np.testing.assert_allclose(mixed, BY_NAME[same_as].score(ROUTING, options))


def test_alpha_weighs_frequency() -> None:
    mixed = BY_NAME["freq-score"].score(ROUTING, CriterionOptions({"alpha": 0.25}))
    np.testing.assert_allclose(mixed[1], 0.25 * 0.5 + 0.75 * 1)


def test_normalisation_does_not_depend_on_the_amount_of_text() -> None:
    ten_times = LayerRouting(100, ROUTING.count * 10, ROUTING.weight_sum * 10, ROUTING.reap_sum * 10)
    for name in ("freq", "score", "reap", "freq-score"):
        a, b = (BY_NAME[name].score(r, _defaults(name)) for r in (ROUTING, ten_times))
        np.testing.assert_allclose(a, b)
    assert NORMALISATION == "layer-max"


def test_random_depends_on_seed_and_layer_alone() -> None:
    score = BY_NAME["random"].score
    other = LayerRouting(1, np.array([0, 0, 1, 1]))
    first = score(ROUTING, CriterionOptions({"seed": 1}, layer=2))
    np.testing.assert_array_equal(first, score(other, CriterionOptions({"seed": 1}, layer=2)))
    assert (first != score(ROUTING, CriterionOptions({"seed": 2}, layer=2))).all()
    assert (first != score(ROUTING, CriterionOptions({"seed": 1}, layer=3))).all()


def test_what_each_criterion_needs() -> None:
    needs = {criterion.name: criterion.needs for criterion in CRITERIA}
    assert needs == {
        "auto": ("weight_sum",),
        "freq-score": ("weight_sum",),
        "reap": ("reap_sum",),
        "mass": ("reap_sum",),
        "freq": (),
        "score": ("weight_sum",),
        "random": (),
    }
    counts_only = LayerRouting(10, ROUTING.count)
    for criterion in CRITERIA:
        if not criterion.needs:
            assert criterion.score(counts_only, _defaults(criterion.name)).shape == (4,)


def test_a_layer_that_nobody_reached_gives_zeros() -> None:
    silent = LayerRouting(0, np.zeros(4, np.int64), np.zeros(4), np.zeros(4))
    for name in ("freq", "score", "reap", "freq-score"):
        np.testing.assert_array_equal(BY_NAME[name].score(silent, _defaults(name)), np.zeros(4))


def test_the_rule_whose_prunings_cost_least_is_taken() -> None:
    """By what was probed by every rule; a rule without probes is no candidate, and without any the first one is."""

    def probe(rule: str, count: int, kld: float) -> PruningProbe:
        return PruningProbe(rule, count, 4, kld, 0.001)

    rules = ["freq-score", "mass", "reap"]
    assert least_costly(rules, []) == "freq-score"
    assert least_costly(rules, [probe("mass", 12, 9.0)]) == "mass"
    probes = [probe("freq-score", 12, 0.1), probe("mass", 12, 0.2), probe("freq-score", 8, 0.9), probe("mass", 8, 0.3)]
    assert least_costly(rules, probes) == "mass"
    assert least_costly(rules, [*probes, probe("mass", 4, 100.0)]) == "mass", "only what both were probed at counts"
    assert least_costly(rules, [*probes, probe("reap", 10, 0.001)]) == "freq-score", "nothing was probed by all three"
    assert least_costly(["freq-score"], probes) == "freq-score"
