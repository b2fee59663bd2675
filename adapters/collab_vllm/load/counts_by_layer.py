"""A number of experts for each layer, where vLLM's model classes read one from the configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from collab_plugin.checkpoint.families.family import Family
from collab_plugin.errors import CollabError
from collab_vllm.load.vllm_config import set_count
from collab_vllm.selection.expert_selection import Selection

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def check_by_layer(vllm_config: VllmConfig, family: Family, selection: Selection) -> None:
    """CollabError where vLLM reads one number for all layers at other places than a layer's constructor."""
    if not selection.varied:
        return
    span = f"the plan keeps {selection.span} experts a layer"
    method = vllm_config.model_config.quantization
    if method is not None and "GptOssForCausalLM" in family.classes:
        # GptOssModel._load_weights_mxfp4 and _quark reshape every layer's experts by the one number.
        raise CollabError(
            f"{span}, and vLLM loads {method} checkpoints of gpt-oss with one number for all; give a BF16 "
            "checkpoint, or plan with as many experts in every layer"
        )
    parallel = vllm_config.parallel_config
    if parallel.enable_expert_parallel and parallel.enable_ep_weight_filter:
        raise CollabError(f"{span}, and --enable-ep-weight-filter knows one number for all; leave it out")
    from vllm._aiter_ops import rocm_aiter_ops

    if rocm_aiter_ops.is_fusion_moe_shared_experts_enabled():
        raise CollabError(
            f"{span}, and shared experts fused by AITER come behind one number for all; set "
            "VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS=0 in the environment"
        )


@contextmanager
def counts_by_layer(model_config: ModelConfig, family: Family, selection: Selection | None) -> Iterator[None]:
    """Layers constructed inside find their own number of experts in the configuration, all else the largest.

    All model classes construct their layers through `make_layers`, which they import by name.
    """
    if selection is None or not selection.varied:
        yield
        return
    from vllm.model_executor.model_loader.utils import get_model_architecture
    from vllm.model_executor.models.utils import extract_layer_index

    module: Any = sys.modules[get_model_architecture(model_config)[0].__module__]
    original = module.make_layers

    def make_layers(num_hidden_layers: int, layer_fn: Callable[..., Any], prefix: str) -> Any:
        def layer(prefix: str) -> Any:
            set_count(model_config, family, selection.counts.get(extract_layer_index(prefix), selection.count))
            return layer_fn(prefix=prefix)

        try:
            return original(num_hidden_layers, layer, prefix)
        finally:
            set_count(model_config, family, selection.count)

    module.make_layers = make_layers
    try:
        yield
    finally:
        module.make_layers = original
