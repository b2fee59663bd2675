from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_models.model_bench import Bench

from collab_plugin.planning.pruning_law import (
    PRUNED_ALONE,
    PRUNED_BESIDE_SHARED,
    pruned_alone,
    stream_prune_cost,
    written,
)
from collab_plugin.stats.stats import LayerRouting, Stats

PRICE = 0.5
SQUARES = np.array([4.0, 1.0, 2.0, 1.0])


def layer(experts: int, squares: np.ndarray | None = SQUARES) -> LayerRouting:
    """Each expert was chosen by 10 of 100 tokens, and always wrote a vector of the square that makes these means."""
    count = np.full(experts, 10)
    if squares is None:
        return LayerRouting(100, count)
    norms = np.sqrt(np.resize(squares, experts) * 100 / count)
    return LayerRouting(100, count, np.ones(experts), norms * count)


def stats(bench: Bench, squares: np.ndarray | None = SQUARES) -> Stats:
    t = bench.topology
    return Stats({n: layer(t.expert_count, squares) for n in t.moe_layers}, {}, 100, 100)


def test_what_experts_write_is_a_mean_over_all_tokens() -> None:
    assert written(layer(4)) == pytest.approx(SQUARES)
    assert written(layer(4, None)) is None


@pytest.mark.parametrize(("model", "factor"), [("softmax", PRUNED_ALONE), ("grouped", PRUNED_BESIDE_SHARED)])
def test_a_dropped_expert_costs_what_it_wrote(model: str, factor: float, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(model)
    t = bench.topology
    gone = dict.fromkeys(t.moe_layers, tuple(range(1, t.expert_count)))  # expert 0 is dropped: 4.0
    cost = stream_prune_cost(
        bench.checkpoint, t, stats(bench), dict.fromkeys(t.moe_layers, PRICE), lambda count, used: gone
    )
    assert cost is not None
    assert cost(t.expert_count - 1, t.experts_used) == pytest.approx(len(t.moe_layers) * PRICE * factor * 4.0)
    assert cost(t.expert_count, t.experts_used) == 0


def test_more_layers_feel_less_of_it() -> None:
    assert [pruned_alone(n) / PRUNED_ALONE for n in (1, 3, 4, 8, 48)] == [1, 1, 3 / 4, 3 / 8, 3 / 8]


def test_fewer_experts_a_token_cost_the_cube_of_their_share(softmax: Bench) -> None:
    t = softmax.topology
    cost = stream_prune_cost(softmax.checkpoint, t, stats(softmax), dict.fromkeys(t.moe_layers, PRICE), lambda c, u: {})
    everything = np.resize(SQUARES, t.expert_count).sum() * PRICE * len(t.moe_layers)
    assert cost is not None
    assert cost(t.expert_count, t.experts_used // 2) == pytest.approx(everything / 8)


def test_none_where_nobody_measured_what_is_written(softmax: Bench) -> None:
    t = softmax.topology
    prices = dict.fromkeys(t.moe_layers, PRICE)
    assert stream_prune_cost(softmax.checkpoint, t, stats(softmax, None), prices, lambda c, u: {}) is None
    assert stream_prune_cost(softmax.checkpoint, t, stats(softmax), {}, lambda c, u: {}) is None
    empty = dataclasses.replace(stats(softmax), routing={})
    assert stream_prune_cost(softmax.checkpoint, t, empty, prices, lambda c, u: {}) is None
