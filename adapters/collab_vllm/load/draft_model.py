"""Draft models of speculative decoding: other models, to which a plan does not apply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab_plugin.errors import CollabError

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def is_draft(vllm_config: VllmConfig, model_config: ModelConfig) -> bool:
    """Whether ``model_config`` is the draft's. vLLM loads drafts with a ``vllm_config`` made for them."""
    speculative = vllm_config.speculative_config
    # Methods without a draft, such as n-grams, have the model's own configuration there.
    return (
        speculative is not None
        and speculative.draft_model_config is not speculative.target_model_config
        and model_config is speculative.draft_model_config
    )


def check_draft(vllm_config: VllmConfig) -> None:
    """CollabError for the model's own prediction layers (MTP), which are not read."""
    speculative = vllm_config.speculative_config
    if speculative is None or speculative.draft_model_config is speculative.target_model_config:
        return
    if speculative.draft_model_config.model == vllm_config.model_config.model:
        raise CollabError(
            "load format collab does not read a model's own prediction layers; give --speculative-config another "
            "model, or leave it out"
        )
