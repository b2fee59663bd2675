"""Which experts stay, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.criteria.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.planning.pruning import (
    MIN_SELECTIONS,
    check_enough,
    check_routing,
    check_servable,
    choose,
    importance_of,
    parse_keep,
)
from collab_plugin.stats.stats import LayerRouting

FREQ = next(c for c in CRITERIA if c.name == "freq")


def topology(experts: int = 8, used: int = 2, groups: int = 1, groups_used: int = 1, layers: int = 1) -> Topology:
    return Topology(
        name="made up",
        architecture="deepseek2",
        block_count=layers,
        moe_layers=tuple(range(layers)),
        prediction_layers=(),
        embedding_length=256,
        expert_count=experts,
        experts_used=used,
        shared_experts=0,
        groups=groups,
        groups_used=groups_used,
        gating="sigmoid",
        renormalises=True,
        weights_scale=1.0,
        context_length=512,
        role_bytes={},
        role_parameters={},
    )


def counted(*count: int) -> LayerRouting:
    return LayerRouting(sum(count) // 2, np.array(count))


# -- choosing


def test_free_choice_keeps_the_most_used_in_their_order() -> None:
    routing = {0: counted(5, 90, 80, 1, 70, 2, 3, 60)}
    chosen = choose(routing, topology(), 4, "none", FREQ, CriterionOptions())
    assert chosen.kept == {0: (1, 2, 4, 7)}
    assert chosen.mass_lost == pytest.approx(11 / 311)


def test_balanced_keeps_as_many_in_every_group() -> None:
    routing = {0: counted(5, 90, 80, 70, 1, 2, 3, 4)}
    t = topology(groups=2, groups_used=1)
    assert choose(routing, t, 4, "balanced", FREQ, CriterionOptions()).kept == {0: (1, 2, 6, 7)}
    assert choose(routing, t, 4, "disband", FREQ, CriterionOptions()).kept == {0: (0, 1, 2, 3)}


@given(st.data())
def test_balanced_never_leaves_a_group(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4, 8]))
    size = data.draw(st.integers(2, 8))
    keep = data.draw(st.integers(1, size)) * groups
    layers = data.draw(st.integers(1, 3))
    t = topology(experts=groups * size, groups=groups, layers=layers)
    routing = {
        layer: counted(*data.draw(st.lists(st.integers(0, 100), min_size=t.expert_count, max_size=t.expert_count)))
        for layer in range(layers)
    }
    chosen = choose(routing, t, keep, "balanced", FREQ, CriterionOptions())
    lost = []
    for layer, kept in chosen.kept.items():
        assert list(kept) == sorted(set(kept))
        # Position // (kept a group) is the group that llama.cpp will put the expert in.
        assert [i // size for i in kept] == [at // (keep // groups) for at in range(keep)]
        total = routing[layer].count.sum()
        dropped = [i for i in range(t.expert_count) if i not in kept]
        lost.append(routing[layer].count[dropped].sum() / max(total, 1))
    assert chosen.mass_lost == pytest.approx(np.mean(lost))


def test_equal_scores_keep_the_lower_id() -> None:
    assert choose({0: counted(*[7] * 8)}, topology(), 3, "none", FREQ, CriterionOptions()).kept == {0: (0, 1, 2)}


def test_random_draws_differ_by_layer() -> None:
    random = next(c for c in CRITERIA if c.name == "random")
    routing = {layer: counted(*[7] * 64) for layer in range(2)}
    kept = choose(routing, topology(64, layers=2), 32, "none", random, CriterionOptions({"seed": 3})).kept
    assert kept[0] != kept[1]
    assert kept == choose(routing, topology(64, layers=2), 32, "none", random, CriterionOptions({"seed": 3})).kept


@given(st.data())
def test_order_of_importance_stays_in_the_groups(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4]))
    size = data.draw(st.integers(2, 6))
    a_group = data.draw(st.integers(1, size))
    t = topology(experts=groups * size, groups=groups)
    count = data.draw(st.lists(st.integers(1, 100), min_size=t.expert_count, max_size=t.expert_count))
    by_id, by_rank = (
        choose({0: counted(*count)}, t, groups * a_group, "balanced", FREQ, CriterionOptions(), order)
        for order in ("original", "importance")
    )
    assert sorted(by_rank.kept[0]) == list(by_id.kept[0])
    assert by_rank.mass_lost == by_id.mass_lost
    for at in range(0, groups * a_group, a_group):
        group = by_rank.kept[0][at : at + a_group]
        assert {i // size for i in group} == {at // a_group}
        assert [count[i] for i in group] == sorted((count[i] for i in group), reverse=True)


# -- experts never seen


def test_unseen_experts_get_the_median_of_the_seen() -> None:
    routing = counted(10, 0, 30, 20, 0)
    np.testing.assert_allclose(importance_of(routing, FREQ, CriterionOptions()), [1 / 3, 2 / 3, 1, 2 / 3, 2 / 3])


def test_unseen_experts_outlive_the_least_used() -> None:
    routing = {0: counted(100, 90, 80, 3, 2, 1, 0, 0)}
    chosen = choose(routing, topology(), 5, "none", FREQ, CriterionOptions())
    assert set(chosen.kept[0]) >= {6, 7}
    assert chosen.unseen_dropped == 0
    fewer = choose(routing, topology(), 3, "none", FREQ, CriterionOptions())
    assert fewer.unseen_dropped == 2


def test_random_draws_the_unseen_like_all_others() -> None:
    random = next(c for c in CRITERIA if c.name == "random")
    options = CriterionOptions({"seed": 1})
    np.testing.assert_array_equal(
        importance_of(counted(1, 0, 3), random, options), importance_of(counted(1, 2, 3), random, options)
    )


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, np.nan, 2.0], [1.0, np.inf, 0.0]])
def test_a_criterion_that_returns_nonsense_is_named(values: list[float]) -> None:
    broken = ImportanceCriterion("broken", "", lambda routing, options: np.array(values))
    with pytest.raises(CollabError, match=r"criterion broken .* layer 7") as error:
        importance_of(counted(1, 2, 3), broken, CriterionOptions(layer=7))
    assert "\n" not in str(error.value)


# -- too few tokens


def test_enough_tokens() -> None:
    check_enough({0: counted(*[MIN_SELECTIONS] * 8)}, topology())


def test_too_few_tokens_says_how_many_are_needed() -> None:
    with pytest.raises(CollabError) as error:
        check_enough({0: counted(*[49] * 8)}, topology())
    message = str(error.value)
    # 50 selections x 8 experts / top-2 = 200 tokens
    assert "layer 0 selected an expert 49.0 times on average, 50 are needed (about 200 tokens)" in message
    assert "`allow_few_tokens`" in message


def test_a_layer_without_statistics_is_named() -> None:
    with pytest.raises(CollabError, match="no routing of layer 1"):
        check_routing({0: counted(*[99] * 8)}, topology(layers=2))


# -- --keep


@pytest.mark.parametrize(
    ("text", "groups", "count"),
    [
        ("0.75", 1, 24),
        ("75%", 1, 24),
        ("24", 1, 24),
        ("32", 1, 32),
        ("100%", 1, 32),
        ("1.0", 1, 32),
        ("0.51", 1, 17),  # ceil(16.32), as the paper's ceil(r E)
        ("0.1", 1, 4),
        ("0.51", 4, 20),  # then up to whole groups
        ("75%", 8, 24),
        ("1", 1, 1),
    ],
)
def test_keep(text: str, groups: int, count: int) -> None:
    assert parse_keep(text, topology(32, groups=groups), "balanced" if groups > 1 else "none") == count


def test_keep_does_not_round_twice() -> None:
    """0.07 x 100 is 7.000000000000001 in floating point."""
    assert parse_keep("0.07", topology(100), "none") == 7


@pytest.mark.parametrize("text", ["", "all", "0.5x", "%", "1/2", "nan%", ".", "--", "1e2"])
def test_keep_that_is_no_number(text: str) -> None:
    with pytest.raises(CollabError, match=r"neither auto, a share like 0\.75 or 75%, nor a count"):
        parse_keep(text, topology(), "none")


@pytest.mark.parametrize("text", ["0", "9", "-1", "0.0", "1.5", "200%", "-0.5"])
def test_keep_out_of_range(text: str) -> None:
    with pytest.raises(CollabError, match="experts of 8 cannot be kept"):
        parse_keep(text, topology(), "none")


def test_count_that_groups_cannot_share_names_its_neighbours() -> None:
    with pytest.raises(CollabError) as error:
        parse_keep("22", topology(32, groups=4), "balanced")
    assert "22 experts do not divide into 4 groups; keep 20 or 24, or `groups` disband" in str(error.value)
    assert parse_keep("22", topology(32, groups=4), "disband") == 22


# -- k that the groups cannot serve


@given(st.data())
def test_exactly_the_impossible_is_refused(data: st.DataObject) -> None:
    """Against the rule spelled out: llama.cpp picks k from the chosen groups, scored by their best two."""
    groups = data.draw(st.sampled_from([1, 2, 4, 8]))
    groups_used = data.draw(st.integers(1, groups))
    a_group = data.draw(st.integers(1, 8))
    used = data.draw(st.integers(0, 40))
    t = topology(groups * 8, 2, groups, groups_used)
    policy = "balanced" if groups > 1 else "none"
    possible = 1 <= used <= (groups_used * a_group) and (groups == 1 or a_group >= 2)
    if possible:
        check_servable(t, groups * a_group, used, policy)
    else:
        with pytest.raises(CollabError) as error:
            check_servable(t, groups * a_group, used, policy)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("count", "used", "message"),
    [
        (16, 17, "17 experts a token cannot come from 16 kept ones"),
        (8, 0, "0 experts a token cannot come from 8 kept ones"),
        (8, 4, "8 experts in 8 groups leave 1 a group; the group score needs 2 (keep 16 or more"),
        (16, 9, "9 experts a token cannot come from 4 groups of 2; lower `experts_used` to 8"),
    ],
)
def test_refusals_carry_the_numbers(count: int, used: int, message: str) -> None:
    t = topology(256, 8, 8, 4)
    with pytest.raises(CollabError) as error:
        check_servable(t, count, used, "balanced")
    assert message in str(error.value)


def test_every_k_that_groups_of_two_can_serve() -> None:
    t = topology(256, 8, 8, 4)
    for used in range(1, 9):
        check_servable(t, 16, used, "balanced")
    check_servable(t, 16, 16, "disband")
    check_servable(dataclasses.replace(t, groups=1, groups_used=1), 3, 3, "none")
