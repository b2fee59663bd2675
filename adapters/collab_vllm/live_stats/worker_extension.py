"""What vLLM's workers can be asked, by `collective_rpc`: the routing of live traffic."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from collab_vllm.experts.counters import Counters
from collab_vllm.experts.routed_experts import CollabRoutedExperts


class CollabWorker:
    """Added to vLLM's worker class (``worker_extension_cls``): its names start with collab_."""

    model_runner: Any
    vllm_config: Any

    def collab_reset(self) -> None:
        """Begin to count anew."""
        for _, counters, _ in self._collab_layers():
            counters.reset()

    def collab_routing(self) -> dict[str, Any]:
        """``layers``: by block number ``tokens``, ``count`` and ``weight_sum`` of the model's own experts.

        ``rank`` is this worker's place among those that see the same tokens; plain numbers, as RPC needs.
        """
        layers = {
            str(layer.block): {
                "tokens": int(counters.tokens),
                "count": counters.count.tolist(),
                "weight_sum": (counters.weight * scale).tolist(),
            }
            for layer, counters, scale in self._collab_layers()
        }
        return {"rank": self.vllm_config.parallel_config.rank, "layers": layers}

    def _collab_layers(self) -> list[tuple[CollabRoutedExperts, Counters, float]]:
        """Layers that count, their counters, and what vLLM multiplies their output with, which is part of the
        weights that llama.cpp sees."""
        runners = [m for m in self.model_runner.get_model().modules() if isinstance(m, MoERunner)]
        found = [(runner.routed_experts, float(runner.routed_scaling_factor)) for runner in runners]
        ours = [(e, e.counters, scale) for e, scale in found if isinstance(e, CollabRoutedExperts)]
        return [(e, counters, scale) for e, counters, scale in ours if counters is not None]
