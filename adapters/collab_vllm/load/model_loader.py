"""The load format ``collab``: vLLM's own model classes with the experts that a plan keeps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from collab_plugin.errors import CollabError
from collab_vllm.experts.gguf_blocks import ArtifactBlocks
from collab_vllm.experts.host.ggml_cpu import how_computed
from collab_vllm.experts.routed_experts import fill, replacing_experts
from collab_vllm.load.counts_by_layer import counts_by_layer
from collab_vllm.load.draft_model import is_draft
from collab_vllm.load.safetensors_files import Weights, weight_files
from collab_vllm.load.startup import Prepared, prepare
from collab_vllm.selection.expert_selection import Part, expert_of, layer_of, part_of, within_block
from collab_vllm.selection.loader_options import LOAD_FORMAT, parse_options

if TYPE_CHECKING:
    import torch
    from torch import nn
    from vllm.config import LoadConfig, ModelConfig, VllmConfig

logger = init_logger("vllm.collab")  # vLLM prints loggers of its own name only


class CollabModelLoader(DefaultModelLoader):
    """Reads the kept experts of a safetensors checkpoint into a model that has room for them alone."""

    def __init__(self, load_config: LoadConfig) -> None:
        parse_options(load_config.model_loader_extra_config)
        # The parent takes no options but its own.
        super().__init__(dataclasses.replace(load_config, load_format="safetensors", model_loader_extra_config={}))
        self._prepared: Prepared | None = None
        self._artifact: ArtifactBlocks | None = None
        self._filled: set[str] = set()

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        if is_draft(vllm_config, model_config):
            plain: BaseModelLoader = DefaultModelLoader(dataclasses.replace(self.load_config, load_format="auto"))
            return plain.load_model(vllm_config, model_config, prefix)
        self._prepared = prepare(vllm_config)
        counts = counts_by_layer(model_config, self._prepared.family, self._prepared.selection)
        with counts, replacing_experts(self._prepared) as self._artifact:
            return super().load_model(vllm_config, model_config, prefix)

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        if self._prepared is None:
            raise CollabError(f"weights of load format {LOAD_FORMAT} cannot be reloaded into a running engine")
        self.counter_before_loading_weights = begun = time.perf_counter()
        selection = self._prepared.selection
        weights = Weights(weight_files(self.load_config, model_config))
        yield from weights.parts(lambda name: self._part(name, model_config.hf_text_config.num_hidden_layers))
        logger.info(
            "collab: read %.2f MB of %.2f MB in %.2f s, skipped %.2f MB%s",
            weights.read_bytes / 1e6,
            weights.total_bytes / 1e6,
            time.perf_counter() - begun,
            (weights.total_bytes - weights.read_bytes) / 1e6,
            f" ({selection.span} experts a layer, {selection.used} a token)" if selection else "",
        )
        if self._artifact is not None:
            self._filled = fill(model, self._artifact)
            logger.info("collab: read %.2f MB of experts from %s", self._artifact.read_bytes / 1e6, self._artifact.path)
        if self._artifact is not None or self._prepared.options.tiered:
            logger.info("collab: %s", how_computed())

    def _part(self, name: str, layers: int) -> Part | None:
        """What to read of a tensor on this rank; None leaves it on the disk."""
        assert self._prepared is not None
        family, selection = self._prepared.family, self._prepared.selection
        layer = layer_of(name)
        if layer is not None and layer >= layers:
            return None  # predicts more tokens, for speculative decoding; the model class would drop it
        if self._artifact is not None and (within_block(name, family) or "").startswith("experts."):
            return None  # comes from the artifact
        part = Part(name) if selection is None else part_of(name, family, selection)
        if part is None or self.local_expert_ids is None:
            return part
        expert = expert_of(part.name, family)
        return part if expert is None or expert in self.local_expert_ids else None

    def track_weights_loading(self, model: nn.Module, loaded_weights: set[str] | None, quantized: bool = False) -> None:
        """Refuse a checkpoint with parts missing; the parent lets whatever a layer can process be missing."""
        if quantized or loaded_weights is None:
            super().track_weights_loading(model, loaded_weights, quantized)
            return
        optional = {
            f"{name}.{parameter}"
            for name, module in model.named_modules()
            if isinstance(getattr(module, "quant_method", None), BaseKVCacheMethod)
            for parameter, _ in module.named_parameters()
        }
        missing = sorted({name for name, _ in model.named_parameters()} - loaded_weights - optional - self._filled)
        if missing:
            raise CollabError(f"the checkpoint has nothing for {missing[0]} ({len(missing)} parameters are missing)")


def register_load_format() -> None:
    """Register the loader; a second call changes nothing."""
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader

    if _LOAD_FORMAT_TO_MODEL_LOADER.get(LOAD_FORMAT) is not CollabModelLoader:
        register_model_loader(LOAD_FORMAT)(CollabModelLoader)
