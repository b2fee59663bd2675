"""The load format ``collab``: vLLM's own model classes with the experts that a plan keeps."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from collab_plugin.errors import CollabError
from collab_vllm.artifact import Artifact
from collab_vllm.experts import fill, replacing_experts
from collab_vllm.files import Weights, weight_files
from collab_vllm.options import LOAD_FORMAT, parse_options
from collab_vllm.pruning import Part, layer_of, part_of, within_block
from collab_vllm.startup import Prepared, prepare

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import LoadConfig, ModelConfig, VllmConfig

logger = init_logger("vllm.collab")  # vLLM prints loggers of its own name only


class CollabModelLoader(BaseModelLoader):
    """Reads the kept experts of a safetensors checkpoint into a model that has room for them alone."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        parse_options(load_config.model_loader_extra_config)
        self._prepared: Prepared | None = None
        self._artifact: Artifact | None = None

    def download_model(self, model_config: ModelConfig) -> None:
        weight_files(self.load_config, model_config)

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        if model_config is not vllm_config.model_config:
            return self._draft(vllm_config, model_config, prefix)
        self._prepared = prepare(vllm_config)
        with replacing_experts(vllm_config, self._prepared) as self._artifact:
            return super().load_model(vllm_config, model_config, prefix)

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        if self._prepared is None:
            raise CollabError(f"weights of load format {LOAD_FORMAT} cannot be reloaded into a running engine")
        begun = time.perf_counter()
        family, selection = self._prepared.family, self._prepared.selection
        layers = model_config.hf_text_config.num_hidden_layers

        def choose(name: str) -> Part | None:
            layer = layer_of(name)
            if layer is not None and layer >= layers:
                return None  # predicts more tokens, for speculative decoding; the model class would drop it
            if self._artifact is not None and (within_block(name, family) or "").startswith("experts."):
                return None
            return Part(name) if selection is None else part_of(name, family, selection)

        weights = Weights(weight_files(self.load_config, model_config))
        loaded = model.load_weights(weights.parts(choose))
        if self._artifact is not None:
            loaded = (loaded or set()) | fill(model, self._artifact)
            logger.info("collab: read %.2f MB of experts from %s", self._artifact.read_bytes / 1e6, self._artifact.path)
        _check_complete(model, loaded)
        logger.info(
            "collab: read %.2f MB of %.2f MB in %.2f s, skipped %.2f MB%s",
            weights.read_bytes / 1e6,
            weights.total_bytes / 1e6,
            time.perf_counter() - begun,
            (weights.total_bytes - weights.read_bytes) / 1e6,
            f" ({selection.count} experts a layer, {selection.used} a token)" if selection else "",
        )

    def _draft(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str) -> nn.Module:
        """A draft model of speculative decoding: another model, to which the plan does not apply."""
        if model_config.model == vllm_config.model_config.model:
            raise CollabError("speculative decoding with the model's own prediction layers needs another load format")
        plain = dataclasses.replace(self.load_config, load_format="auto", model_loader_extra_config={})
        return DefaultModelLoader(plain).load_model(vllm_config, model_config, prefix)


def _check_complete(model: nn.Module, loaded: set[str] | None) -> None:
    """A checkpoint with tensors missing is refused; vLLM would serve what happened to be in memory."""
    if loaded is None:
        return
    missing = sorted({name for name, _ in model.named_parameters()} - loaded)
    if missing:
        raise CollabError(f"the checkpoint has nothing for {missing[0]} ({len(missing)} parameters are missing)")


def register_load_format() -> None:
    """Register the loader; a second call changes nothing."""
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader

    if _LOAD_FORMAT_TO_MODEL_LOADER.get(LOAD_FORMAT) is not CollabModelLoader:
        register_model_loader(LOAD_FORMAT)(CollabModelLoader)
