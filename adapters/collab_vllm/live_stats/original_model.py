"""The model that a running vLLM was pruned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collab_vllm.load.check_model import model_id, router_weights
from collab_vllm.load.safetensors_files import Weights, weight_files
from collab_vllm.load.startup import prepare

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class OriginalModel:
    """``model_id`` and experts a layer of the checkpoint; ``kept`` as in a plan, empty when nothing is pruned."""

    model_id: str
    experts: int
    kept: Mapping[int, tuple[int, ...]]


def original_of(vllm_config: VllmConfig) -> OriginalModel:
    """Read the routers of the checkpoint; a few megabytes."""
    prepared = prepare(vllm_config)
    layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    routers = router_weights(Weights(weight_files(vllm_config.load_config, vllm_config.model_config)), prepared.family)
    inside = {name: values for name, values in routers.items() if int(name.split(".")[1]) < layers}
    kept = prepared.selection.kept if prepared.selection else {}
    return OriginalModel(model_id(inside.items()), len(next(iter(inside.values()))), kept)
