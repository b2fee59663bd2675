"""Qwen3-VL-MoE: Qwen3-MoE's decoder, experts fused and transposed, beside a vision tower."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import head_length
from collab_plugin.checkpoint.families.family import Decoder, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import head_keys, rope_keys, rope_sections, u32
from collab_plugin.checkpoint.families.qwen3moe import QWEN3_MOE
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    QUERY_KEY_NORMS,
    TensorRule,
    block_tensor,
    fused_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_QWEN3 = QWEN3_MOE.conversion
assert _QWEN3 is not None
_SECTIONS = [24, 20, 20]  # transformers' own


def _keys(c: Config) -> dict[str, MetaValue]:
    seen = c.get("vision_config")
    deep = seen.get("deepstack_visual_indexes") if isinstance(seen, dict) else None
    if deep is not None and not isinstance(deep, list):
        raise CollabError(f"{c.where} has deepstack_visual_indexes that are no list")
    return {
        **head_keys(head_length(c)),
        **rope_sections(c, _SECTIONS),
        **rope_keys(c),
        "n_deepstack_layers": u32(len(deep or ())),
    }


def _expert(part: str, stored: str, number: int, parts: int, shape: str) -> tuple[TensorRule, TensorRule]:
    """As it is published, transposed, or as transformers 5 saves it."""
    outputs, inputs = shape.split()
    return (
        block_tensor(
            f"mlp.experts.{stored}",
            f"ffn_{part}_exps.weight",
            f"experts {inputs} {outputs}",
            fused_experts(number, parts, transposed=True),
            "experts",
        ),
        block_tensor(
            f"mlp.experts.{stored}",
            f"ffn_{part}_exps.weight",
            f"experts {outputs} {inputs}",
            fused_experts(number, parts),
            "experts",
        ),
    )


_EXPERTS = (
    router_weights(),
    *_expert("gate", "gate_up_proj", 0, 2, "2*expert_width hidden"),
    *_expert("up", "gate_up_proj", 1, 2, "2*expert_width hidden"),
    *_expert("down", "down_proj", 0, 1, "hidden expert_width"),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (*OUTSIDE_BLOCKS, *BLOCK_NORMS, *GROUPED_QUERY, *QUERY_KEY_NORMS, *_EXPERTS)


QWEN3_VL_MOE = Family(
    name="qwen3-vl-moe",
    classes=("Qwen3VLMoeForConditionalGeneration",),
    architecture="qwen3vlmoe",
    expert_counts=("num_experts", "num_local_experts"),
    remark="the vision tower is dropped with a note, a pruned folder keeps it",
    vllm=False,
    decoder=Decoder(),
    conversion=replace(
        _QWEN3,
        config_class="Qwen3VLMoeTextConfig",
        defaults={
            "num_key_value_heads": 16,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 128000,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "tie_word_embeddings": True,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
            "norm_topk_prob": (None, True),
        },
        renormalises=None,
        more_keys=_keys,
        tensors=_tensors,
        nested="text_config",
        renames=(("model.language_model.", "model."),),
        passed_over=(PassedOver("model.visual.", "the vision tower", copied=True),),
        ignored=frozenset(
            (
                *("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
                "sliding_window",
            )
        ),
    ),
)
