"""Sums of a calibration in vLLM, without vLLM: what is kept of them and taken up again ends in the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from collab_vllm.live_stats.routed_stats import RoutedSums, layers_of, merged

EXPERTS, LAYERS, TOKENS = 16, (1, 2, 5), 1024


def _answer(batch: int) -> dict[str, Any]:
    """What a worker's `collab_routing` tells of a batch."""
    random = np.random.default_rng(batch)
    layers = {
        str(layer): {
            "tokens": TOKENS,
            "count": random.integers(0, 100, EXPERTS).tolist(),
            "weight_sum": random.random(EXPERTS).tolist(),
        }
        for layer in LAYERS
    }
    return {"rank": 0, "layers": layers}


def _summed(batches: range, sums: RoutedSums) -> RoutedSums:
    for batch in batches:
        sums.add(merged([_answer(batch)]))
    return sums


def test_they_go_on_to_the_same_numbers() -> None:
    whole, later = _summed(range(50), RoutedSums()), RoutedSums()
    later.restore(_summed(range(17), RoutedSums()).state())
    _summed(range(17, 50), later)
    assert tuple(later.layers) == LAYERS
    for name, values in whole.state().items():
        assert later.state()[name].tolist() == values.tolist(), name


def test_what_was_kept_is_not_added_to() -> None:
    sums = _summed(range(3), RoutedSums())
    before = {name: values.copy() for name, values in sums.state().items()}
    kept = sums.state()
    _summed(range(3, 5), sums)
    for name, values in before.items():
        np.testing.assert_array_equal(kept[name], values)


def test_the_routing_is_all_of_it() -> None:
    routing = layers_of(_summed(range(4), RoutedSums()).state() | {"tokens": np.array(4 * TOKENS)})
    for at, layer in enumerate(LAYERS):
        answers = [list(_answer(batch)["layers"].values())[at] for batch in range(4)]
        assert routing[layer].tokens == 4 * TOKENS
        np.testing.assert_array_equal(routing[layer].count, np.sum([a["count"] for a in answers], 0))
        np.testing.assert_allclose(routing[layer].weight_sum, np.sum([a["weight_sum"] for a in answers], 0))
