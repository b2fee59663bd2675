"""What pruning costs in a model where that was not probed, from what the dropped experts wrote to the residual stream.

docs/method.md §6 has the law and its evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.formats.tensor_names import Role
from collab_plugin.stats.stats import LayerRouting, Stats

PruneCost = Callable[[int, int], float]
"""(experts kept, experts used) -> nats."""
KeptIds = Callable[[int, int], Mapping[int, tuple[int, ...]]]
"""(experts kept, experts used) -> ids of the kept experts, by layer."""

PRUNED_BESIDE_SHARED = 1.5
"""Times what an error of the size of the dropped experts' output costs where a shared expert works on: the geometric
mean over three families of 0.9 to 2.3 (docs/method.md §6)."""

PRUNED_ALONE, SHALLOW, DEEP = 6.5, 3, 8
"""The same where the routed experts are all there is, of a model with three layers of them: the next best do other
work. Most of it is in the first of these layers, and the more come after it, the less is felt: 5.2 to 6.7 in three and
four layers, 1.8 and 3.1 in eight, the deepest that were measured. Over five families the geometric mean of C M / 3."""


def pruned_alone(layers: int) -> float:
    """C of a model with so many ``layers`` of experts that has no shared ones: 6.5 · 3 / M, for M from 3 to 8."""
    return PRUNED_ALONE * SHALLOW / min(max(layers, SHALLOW), DEEP)


def stream_prune_cost(
    checkpoint: Checkpoint, topology: Topology, stats: Stats, prices: Mapping[int, float], kept: KeptIds
) -> PruneCost | None:
    """P = Σ_l u_l (C D_l + ((k − k') / k)³ A_l), with D_l and A_l the `written` of the dropped and of all experts.

    ``prices``: u_l, nats a unit of squared error in the stream after layer l. None where a layer of experts has no
    price or where nobody measured what its experts write.
    """
    output = {layer: written(stats.routing[layer]) for layer in topology.moe_layers if layer in stats.routing}
    if not set(topology.moe_layers) <= set(prices) or any(output.get(n) is None for n in topology.moe_layers):
        return None
    energy = {layer: found for layer, found in output.items() if found is not None}
    shared = {info.layer for info in checkpoint.tensors.values() if info.role == Role.SHARED_EXPERT}
    alone = pruned_alone(len(energy))
    factor = {layer: PRUNED_BESIDE_SHARED if layer in shared else alone for layer in energy}

    def cost(count: int, used: int) -> float:
        fewer = max(0, topology.experts_used - used) / topology.experts_used
        stay = kept(count, used) if count < topology.expert_count else {}
        total = 0.0
        for layer, each in energy.items():
            dropped = 1.0 - float(each[list(stay[layer])].sum() / each.sum()) if layer in stay else 0.0
            total += prices[layer] * float(each.sum()) * (factor[layer] * max(dropped, 0.0) + fewer**3)
        return total

    return cost


def written(routing: LayerRouting) -> NDArray[np.float64] | None:
    """Squared norm that each expert adds to the stream, a mean over all tokens: f64[E]; None where it was not measured.

    From the mean of weight × norm over the tokens that chose it, so what varies from token to token is left out.
    """
    if routing.reap_sum is None or not routing.tokens or not routing.reap_sum.any():
        return None
    return np.asarray(np.square(routing.reap_sum) / np.maximum(routing.count, 1) / routing.tokens, np.float64)
