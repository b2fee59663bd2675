"""Figures of docs/sources.md, V3 routing, from real router statistics of DeepSeek-V3-0324.

The data stay outside the repository, in the folder that COLLAB_ROUTING_DATA names (from github.com/Bobchenyx/CC-MoE,
config_671B_expert_scores_seqlen_8k.json as deepseek-v3-0324-routing-8k.json, and 4k). Per MoE layer:
`scores`, the sum of router weights of an expert over the tokens that selected it, and `activations`,
how many did. The figures rank by `scores` and count the share of `scores` that the dropped had.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_pruning import topology

from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.criteria.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.planning.pruning import Kept, choose
from collab_plugin.plans.plan import GroupPolicy
from collab_plugin.stats.stats import LayerRouting

DATA = Path(os.environ.get("COLLAB_ROUTING_DATA") or Path(__file__).parents[3] / "shared" / "data")
EXPERTS, GROUPS, GROUPS_USED, TOP_K = 256, 8, 4, 8
LAYERS = range(3, 61)
TOPOLOGY = dataclasses.replace(topology(EXPERTS, TOP_K, GROUPS, GROUPS_USED), moe_layers=tuple(LAYERS))
BY_NAME = {criterion.name: criterion for criterion in CRITERIA}


def _weight_sum(routing: LayerRouting, options: CriterionOptions) -> NDArray[np.float64]:
    assert routing.weight_sum is not None
    return routing.weight_sum


WEIGHT_SUM = ImportanceCriterion("weight-sum", "sum of router weights: the ranking of the paper's code", _weight_sum)


def _load(name: str) -> dict[int, LayerRouting]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: real routing statistics are kept outside the repository")
    data = json.loads(path.read_text())
    found = {}
    for layer in LAYERS:
        entry = data[f"layer_{layer}"]
        count = np.array(entry["activations"], np.int64)
        found[layer] = LayerRouting(int(count.sum()) // TOP_K, count, np.array(entry["scores"], np.float64))
    return found


@pytest.fixture(scope="module")
def routing() -> dict[int, LayerRouting]:
    return _load("deepseek-v3-0324-routing-8k.json")


def _choose(
    routing: Mapping[int, LayerRouting],
    policy: GroupPolicy,
    criterion: ImportanceCriterion = WEIGHT_SUM,
    keep: int = 192,
) -> Kept:
    return choose(routing, TOPOLOGY, keep, policy, criterion, CriterionOptions(criterion.values({})))


def _weight_lost(routing: Mapping[int, LayerRouting], choice: Kept) -> float:
    """Percent of the router weights that the dropped had; mean over layers."""
    shares = [1 - r.weight_sum[list(choice.kept[n])].sum() / r.weight_sum.sum() for n, r in routing.items()]
    return 100 * float(np.mean(shares))


def _agreement(a: Kept, b: Kept) -> float:
    """Percent of the kept set that two choices share."""
    return 100 * float(np.mean([len(set(a.kept[n]) & set(b.kept[n])) / len(a.kept[n]) for n in a.kept]))


@pytest.mark.parametrize(("keep", "free", "balanced"), [(192, 8.45, 9.53), (160, 15.63, 17.05), (128, 24.66, 26.29)])
def test_mass_lost(keep: int, free: float, balanced: float, routing: dict[int, LayerRouting]) -> None:
    assert _weight_lost(routing, _choose(routing, "disband", keep=keep)) == pytest.approx(free, abs=0.005)
    assert _weight_lost(routing, _choose(routing, "balanced", keep=keep)) == pytest.approx(balanced, abs=0.005)


@pytest.mark.parametrize(("keep", "least", "most"), [(192, 10, 32), (160, 7, 32), (128, 4, 32)])
def test_kept_in_a_group(keep: int, least: int, most: int, routing: dict[int, LayerRouting]) -> None:
    size = EXPERTS // GROUPS
    free, even = (
        [
            np.bincount(np.array(kept) // size, minlength=GROUPS)
            for kept in _choose(routing, policy, keep=keep).kept.values()
        ]
        for policy in ("disband", "balanced")
    )
    assert (np.min(free), np.max(free)) == (least, most)
    assert np.unique(even).tolist() == [keep // GROUPS]


def test_renumbering_across_groups_would_move_experts(routing: dict[int, LayerRouting]) -> None:
    """What free choice under unchanged group keys would do: 28 % of the experts land in another group."""
    new_group = np.arange(192) // (192 // GROUPS)
    moved = [
        float(np.mean(np.array(kept) // (EXPERTS // GROUPS) != new_group))
        for kept in _choose(routing, "disband").kept.values()
    ]
    assert 100 * np.mean(moved) == pytest.approx(28.3, abs=0.05)
    assert 100 * np.max(moved) == pytest.approx(63.5, abs=0.05)


def test_mass_lost_in_plans_counts_activations(routing: dict[int, LayerRouting]) -> None:
    """The same choices by the measure that plans record (published imatrix files have no weights)."""
    assert 100 * _choose(routing, "disband").mass_lost == pytest.approx(9.98, abs=0.005)
    assert 100 * _choose(routing, "balanced").mass_lost == pytest.approx(11.44, abs=0.005)


@pytest.mark.parametrize(
    ("name", "weight_free", "weight_balanced", "count_balanced"),
    [("freq-score", 10.07, 10.77, 13.85), ("freq", 8.75, 9.87, 11.12), ("score", 17.59, 15.86, 20.90)],
)
def test_built_in_criteria(
    name: str, weight_free: float, weight_balanced: float, count_balanced: float, routing: dict[int, LayerRouting]
) -> None:
    free, balanced = (_choose(routing, policy, BY_NAME[name]) for policy in ("disband", "balanced"))
    assert _weight_lost(routing, free) == pytest.approx(weight_free, abs=0.005)
    assert _weight_lost(routing, balanced) == pytest.approx(weight_balanced, abs=0.005)
    assert 100 * balanced.mass_lost == pytest.approx(count_balanced, abs=0.005)


def test_normalisation_changes_the_kept_set(routing: dict[int, LayerRouting]) -> None:
    """The paper mixes f and s without saying how they are scaled: layer-max, raw, or not mixed at all."""

    def unscaled(tokens_a_selection: int) -> ImportanceCriterion:
        """f as a share of selections (1) or of tokens (top-k), s as it is."""

        def score(r: LayerRouting, options: CriterionOptions) -> NDArray[np.float64]:
            assert r.weight_sum is not None
            return 0.5 * tokens_a_selection * r.count / r.count.sum() + 0.5 * r.weight_sum / r.count

        return ImportanceCriterion("unscaled", "", score)

    ours = _choose(routing, "disband", BY_NAME["freq-score"])
    theirs = _choose(routing, "disband")
    assert _agreement(ours, theirs) == pytest.approx(91.3, abs=0.05)
    for tokens_a_selection, with_theirs, with_ours in ((1, 82.2, 90.0), (TOP_K, 86.5, 94.7)):
        choice = _choose(routing, "disband", unscaled(tokens_a_selection))
        assert _agreement(choice, theirs) == pytest.approx(with_theirs, abs=0.05)
        assert _agreement(choice, ours) == pytest.approx(with_ours, abs=0.05)


def test_four_and_eight_thousand_tokens_agree(routing: dict[int, LayerRouting]) -> None:
    shorter = _load("deepseek-v3-0324-routing-4k.json")
    for criterion, percent in ((WEIGHT_SUM, 93.8), (BY_NAME["freq-score"], 94.2)):
        choices = [_choose(r, "disband", criterion) for r in (routing, shorter)]
        assert _agreement(*choices) == pytest.approx(percent, abs=0.05)


def test_least_used_quarter(routing: dict[int, LayerRouting]) -> None:
    quarter = [np.sort(r.count)[: EXPERTS // 4].sum() / r.count.sum() for r in routing.values()]
    assert 100 * np.mean(quarter) == pytest.approx(9.69, abs=0.005)
