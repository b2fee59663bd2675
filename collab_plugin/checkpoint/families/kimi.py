"""Kimi-K2.5 and later: DeepSeek-V3's decoder beside a vision tower. Kimi-K2 itself has DeepSeek-V3's class."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.families.deepseek_v3 import DEEPSEEK_V3
from collab_plugin.checkpoint.families.family import PassedOver

_V3 = DEEPSEEK_V3.conversion
assert _V3 is not None

KIMI_K25 = replace(
    DEEPSEEK_V3,
    name="kimi-k2.5",
    remark="Kimi-K2.5 and later, without the vision tower; Kimi-K2 has DeepSeek-V3's class",
    vllm=False,
    classes=("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"),
    conversion=replace(
        _V3,
        nested="text_config",
        renames=(("language_model.", ""),),
        passed_over=(
            PassedOver("vision_tower.", "the vision tower", copied=True),
            PassedOver("mm_projector.", "what brings images to the decoder", copied=True),
        ),
        ignored=_V3.ignored
        | frozenset(
            (
                *("vision_config", "image_token_id", "media_placeholder_token_id", "ignore_index", "unpad_token"),
                *("use_unified_vision_chunk", "video_placeholder", "head_dim", "projection_hidden_size", "topk_group"),
                *("projection_layer_norm_eps", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
            )
        ),
    ),
)
