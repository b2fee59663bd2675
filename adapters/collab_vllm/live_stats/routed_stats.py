"""Stats of what a running vLLM routed, under the numbers of the original model's experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.stats.stats import LayerRouting, Stats

WINDOW = 512
"""`imatrix.chunk_size` of stats of live traffic, which has no windows."""


def engine_version() -> str:
    return f"vLLM {version('vllm')}"


def merged(answers: Sequence[Mapping[str, Any]]) -> dict[int, LayerRouting]:
    """Routing of all layers from the workers' `collab_routing`.

    Workers of one tensor-parallel group saw the same tokens: the first that has a layer speaks for it.
    """
    found: dict[int, LayerRouting] = {}
    for answer in sorted(answers, key=lambda a: a["rank"]):
        for layer, sums in answer["layers"].items():
            if int(layer) not in found:
                found[int(layer)] = LayerRouting(
                    int(sums["tokens"]), np.array(sums["count"], np.int64), np.array(sums["weight_sum"], np.float64)
                )
    return found


class RoutedSums:
    """Routing added up batch by batch; ``layers`` so far. Its `state` is i64[E] ``count.N``, f64[E] ``weights.N`` and
    ``layer_tokens.N`` of each layer N."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerRouting] = {}

    def add(self, routing: Mapping[int, LayerRouting]) -> None:
        """Add what one batch routed, with its sums of weights."""
        for layer, new in routing.items():
            assert new.weight_sum is not None
            so_far = self.layers.get(layer)
            if so_far is None or so_far.weight_sum is None:
                self.layers[layer] = new
                continue
            count, weights = so_far.count + new.count, so_far.weight_sum + new.weight_sum
            self.layers[layer] = LayerRouting(so_far.tokens + new.tokens, count, weights)

    def state(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for layer, one in self.layers.items():
            found[f"count.{layer}"], found[f"weights.{layer}"] = one.count, np.asarray(one.weight_sum)
            found[f"layer_tokens.{layer}"] = np.array(one.tokens)
        return found

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.layers = layers_of(arrays)


def layers_of(arrays: Mapping[str, NDArray[Any]]) -> dict[int, LayerRouting]:
    """What `RoutedSums.state` was made of; other arrays are passed over."""
    layers = sorted(int(name.removeprefix("count.")) for name in arrays if name.startswith("count."))
    return {
        layer: LayerRouting(int(arrays[f"layer_tokens.{layer}"]), arrays[f"count.{layer}"], arrays[f"weights.{layer}"])
        for layer in layers
    }


def original_numbers(
    routing: Mapping[int, LayerRouting], kept: Mapping[int, tuple[int, ...]], experts: int
) -> dict[int, LayerRouting]:
    """``routing`` with a pruned model's experts at their original places; the pruned ones were never seen."""
    return {layer: _placed(one, kept.get(layer), experts) for layer, one in routing.items()}


def _placed(one: LayerRouting, kept: tuple[int, ...] | None, experts: int) -> LayerRouting:
    if not kept:
        return one
    count, weights = np.zeros(experts, np.int64), np.zeros(experts)
    count[list(kept)], weights[list(kept)] = one.count, one.weight_sum
    return LayerRouting(one.tokens, count, weights)


def stats_of(routing: Mapping[int, LayerRouting], model_id: str | None) -> Stats:
    """Stats of live traffic; no importance matrix and no REAP sums, which this engine does not measure."""
    tokens = max((one.tokens for one in routing.values()), default=0)
    return Stats(routing, {}, tokens, WINDOW, ("live traffic",), model_id, engine_version())
