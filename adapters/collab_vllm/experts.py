"""vLLM's layer of routed experts, replaced while a model with the options that need it is constructed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe import RoutedExperts

from collab_plugin.errors import CollabError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from collab_vllm.startup import Prepared

_prepared: Prepared | None = None


class CollabRoutedExperts(RoutedExperts):
    """Where statistics (`forward_modular`), tiers and quantized methods (`_get_quant_method`) are added."""


@contextmanager
def replacing_experts(vllm_config: VllmConfig, prepared: Prepared) -> Iterator[None]:
    """Make models constructed inside use `CollabRoutedExperts` and the plan's types, where options ask for it."""
    global _prepared
    options = prepared.options
    if not options.replaces_experts:
        yield
        return
    if options.quantize:
        if vllm_config.quant_config is not None:
            raise CollabError(
                f"the checkpoint is quantized already ({vllm_config.quant_config.get_name()}); "
                'leave out "quantize" or take the original checkpoint'
            )
        # SEAM: vllm_config.quant_config = the config that holds experts at prepared.plan's types
        raise CollabError('option "quantize" is not there yet')
    _prepared = prepared
    op_registry_oot[RoutedExperts.__name__] = CollabRoutedExperts
    try:
        yield
    finally:
        op_registry_oot.pop(RoutedExperts.__name__, None)
        _prepared = None
