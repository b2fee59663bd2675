"""The importance map: what was dropped, how much that loses, and statistics that do not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_models.big_plan import DENSE, EXPERTS, LAYERS, big_plan, big_stats, some_kept
from small_models.made import Made

from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import registry
from collab_plugin.reports.expert_importance import importance_map
from collab_plugin.stats.stats import LayerRouting
from collab_plugin.stats.stats_file import read_stats


def test_map_is_the_plans_own(made: Made) -> None:
    found = importance_map(made.plan, read_stats(made.stats), None, registry().criteria)
    assert found is not None
    assert found.criterion == made.plan.pruning.criterion == "freq-score"
    for row, layer in enumerate(found.layers):
        assert np.flatnonzero(found.kept[row]).tolist() == list(made.plan.pruning.kept[layer])
    lost = [found.mass_lost(row) or 0.0 for row in range(len(found.layers))]
    assert np.mean(lost) == pytest.approx(made.plan.pruning.mass_lost)
    assert found.unseen[:, 5].all()
    assert found.unseen.sum() == len(found.layers)


def test_dropped_are_the_least_important(made: Made) -> None:
    """In each group, that is; a router without groups has one."""
    groups = 1 if made.plan.pruning.group_policy == "none" else 4
    found = importance_map(made.plan, read_stats(made.stats), groups, registry().criteria)
    assert found is not None and found.scores is not None
    for scores, kept in zip(found.scores, found.kept, strict=True):
        for group, stays in zip(np.split(scores, groups), np.split(kept, groups), strict=True):
            assert group[stays].min() >= group[~stays].max()


def test_without_statistics_only_what_was_dropped(made: Made) -> None:
    found = importance_map(made.plan, None, None, registry().criteria)
    assert found is not None
    assert found.scores is None and found.selections is None
    assert found.kept.shape == (len(made.plan.pruning.kept), 16)
    assert found.mass_lost(0) is None
    assert not found.unseen.any()


def test_unpruned_plan_shows_the_default_criterion() -> None:
    plan = big_plan(some_kept())
    whole = dataclasses.replace(
        plan,
        pruning=dataclasses.replace(plan.pruning, criterion="none", options={}, kept={}, expert_count=EXPERTS),
        source=dataclasses.replace(plan.source, parameters=-1),
    )
    stats = big_stats()
    counted = {n: LayerRouting(r.tokens, r.count) for n, r in stats.routing.items()}
    for routing, name in ((stats.routing, "freq-score"), (counted, "freq")):
        found = importance_map(whole, dataclasses.replace(stats, routing=routing), None, registry().criteria)
        assert found is not None
        assert (found.criterion, found.kept.all(), len(found.layers)) == (name, True, LAYERS - DENSE)


def test_statistics_of_another_model_are_refused() -> None:
    plan, stats = big_plan(some_kept()), big_stats()
    few = {n: LayerRouting(r.tokens, r.count[:64]) for n, r in stats.routing.items()}
    with pytest.raises(CollabError, match="64 experts a layer, the plan's model has 256"):
        importance_map(plan, dataclasses.replace(stats, routing=few), None, registry().criteria)
    missing = {n: r for n, r in stats.routing.items() if n != 7}
    with pytest.raises(CollabError, match="no routing of layer 7"):
        importance_map(plan, dataclasses.replace(stats, routing=missing), None, registry().criteria)
    with pytest.raises(CollabError, match="7 expert groups do not divide"):
        importance_map(plan, stats, 7, registry().criteria)


def test_unknown_criterion_names_its_plugin() -> None:
    plan = big_plan(some_kept())
    foreign = dataclasses.replace(plan, pruning=dataclasses.replace(plan.pruning, criterion="wisdom"))
    with pytest.raises(CollabError, match="criterion 'wisdom' is not installed; install its plugin"):
        importance_map(foreign, big_stats(), None, registry().criteria)
