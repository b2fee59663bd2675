"""vLLM's layer of routed experts, replaced while a model with the options that need it is constructed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.models.utils import extract_layer_index

from collab_plugin.errors import CollabError
from collab_vllm.experts.counters import Counters
from collab_vllm.experts.gguf_blocks import ArtifactBlocks
from collab_vllm.experts.hot import tiers_of_layer
from collab_vllm.experts.quant_methods import GgufExperts, TieredExperts

if TYPE_CHECKING:
    from collab_vllm.load.startup import Prepared


class _Building:
    """What layers under construction go by. ``artifact``: where their weights come from."""

    prepared: Prepared | None = None
    artifact: ArtifactBlocks | None = None


class CollabRoutedExperts(RoutedExperts):
    """Counts what is selected (``counters``, None when not asked to), and holds weights as the options say."""

    counters: Counters | None
    block: int

    def __init__(self, layer_name: str, *args: Any, **kwargs: Any) -> None:
        self._layer_block = extract_layer_index(layer_name)
        super().__init__(layer_name, *args, **kwargs)
        self.block = self._layer_block
        counting = _Building.prepared is not None and _Building.prepared.options.stats
        self.counters = Counters(self.global_num_experts) if counting else None

    def _get_quant_method(self, prefix: str, quant_config: Any, moe_config: FusedMoEConfig) -> FusedMoEMethodBase:
        prepared, artifact = _Building.prepared, _Building.artifact
        if prepared is None or (artifact is None and not prepared.options.tiered):
            return super()._get_quant_method(prefix, quant_config, moe_config)
        options, plan, layer = prepared.options, prepared.plan, self._layer_block
        tiers = tiers_of_layer(options, plan, layer, moe_config.num_experts, moe_config.experts_per_token)
        if artifact is not None:
            return GgufExperts(moe_config, artifact.layers[layer], tiers, options)
        assert tiers is not None
        return TieredExperts(moe_config, tiers, options)

    def forward_modular(
        self,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any = None,
        shared_experts_input: Tensor | None = None,
    ) -> Any:
        if self.counters is not None:
            self.counters.add(topk_ids, topk_weights)
        return super().forward_modular(x, topk_weights, topk_ids, shared_experts, shared_experts_input)

    def forward_monolithic(
        self, x: Tensor, router_logits: Tensor | None = None, input_ids: Tensor | None = None
    ) -> Any:
        if self.counters is not None:
            raise CollabError(
                f'option "stats": vLLM\'s kernel in {self.layer_name} routes by itself and shows no choice; give '
                "another --moe-backend, such as triton"
            )
        return super().forward_monolithic(x, router_logits, input_ids)


@contextmanager
def replacing_experts(prepared: Prepared) -> Iterator[ArtifactBlocks | None]:
    """Make models constructed inside use `CollabRoutedExperts`, where options ask for it.

    Yields the artifact that expert weights are to come from.
    """
    options = prepared.options
    if not options.replaces_experts:
        yield None
        return
    artifact = (
        None if options.artifact is None or prepared.plan is None else ArtifactBlocks(options.artifact, prepared.plan)
    )
    _Building.prepared, _Building.artifact = prepared, artifact
    op_registry_oot[RoutedExperts.__name__] = CollabRoutedExperts
    try:
        yield artifact
    finally:
        op_registry_oot.pop(RoutedExperts.__name__, None)
        _Building.prepared = _Building.artifact = None


def fill(model: nn.Module, artifact: ArtifactBlocks) -> set[str]:
    """Copy expert weights into ``model``; returns the names of the parameters that were filled."""
    filled = set()
    for name, layer in model.named_modules():
        if isinstance(layer, CollabRoutedExperts) and isinstance(layer.quant_method, GgufExperts):
            layer.quant_method.fill(layer, artifact, layer.block)
            filled |= {f"{name}.{parameter}" for parameter, _ in layer.named_parameters()}
    return filled
