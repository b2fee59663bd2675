"""Qwen3.5-MoE and Qwen3.6-MoE: as Qwen3-Next with heads of values in another order, and a vision tower beside it."""

from __future__ import annotations

import numpy as np

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import rope_sections
from collab_plugin.checkpoint.families.linear_attention import (
    FULL_ATTENTION,
    LAYER_SETS,
    LINEAR_DEFAULTS,
    LINEAR_KEYS,
    NORMS,
    heads_in_turn,
    linear_keys,
    linear_sizes,
    values_in_turn,
    values_last_in_turn,
)
from collab_plugin.checkpoint.families.qwen2moe import GATED_SHARED_EXPERT
from collab_plugin.checkpoint.families.qwen3next import LINEAR
from collab_plugin.checkpoint.families.tensors import OUTSIDE_BLOCKS, TensorRule, block_tensor, ordered
from collab_plugin.formats.gguf_values import MetaValue

_SECTIONS = [11, 11, 10]  # transformers' own, of a rotary embedding that is the same for all of them in text


def _keys(c: Config) -> dict[str, MetaValue]:
    return linear_keys(c) | rope_sections(c, _SECTIONS)


_TURNED = ordered(heads_in_turn)
_DELTA_NET = (
    block_tensor(
        f"{LINEAR}in_proj_qkv.weight", "attn_qkv.weight", "qkv hidden", ordered(values_last_in_turn), "linear"
    ),
    block_tensor(f"{LINEAR}in_proj_z.weight", "attn_gate.weight", "values hidden", ordered(values_in_turn), "linear"),
    block_tensor(f"{LINEAR}in_proj_b.weight", "ssm_beta.weight", "value_heads hidden", _TURNED, "linear"),
    block_tensor(f"{LINEAR}in_proj_a.weight", "ssm_alpha.weight", "value_heads hidden", _TURNED, "linear"),
    block_tensor(f"{LINEAR}conv1d.weight", "ssm_conv1d.weight", "qkv 1 kernel", ordered(values_last_in_turn), "linear"),
    block_tensor(
        f"{LINEAR}A_log", "ssm_a", "value_heads", ordered(heads_in_turn, function=lambda a: -np.exp(a)), "linear"
    ),
    block_tensor(f"{LINEAR}dt_bias", "ssm_dt.bias", "value_heads", _TURNED, "linear"),
    block_tensor(f"{LINEAR}norm.weight", "ssm_norm.weight", "value_length", layers="linear"),
    block_tensor(
        f"{LINEAR}out_proj.weight", "ssm_out.weight", "hidden values", ordered(columns=values_in_turn), "linear"
    ),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (*OUTSIDE_BLOCKS[::2], *NORMS, *_DELTA_NET, *FULL_ATTENTION, *GATED_SHARED_EXPERT)


QWEN35_MOE = Family(
    name="qwen3.5-moe",
    classes=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
    architecture="qwen35moe",
    expert_counts=("num_experts",),
    remark="Qwen3.5 and 3.6; the vision tower and MTP layers are dropped with a note, a pruned folder keeps the tower",
    vllm=False,
    decoder=Decoder("delta-net"),
    conversion=Conversion(
        config_class="Qwen3_5MoeTextConfig",
        defaults={
            **LINEAR_DEFAULTS,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 32768,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
        keys=LINEAR_KEYS,
        more_keys=_keys,
        sizes=linear_sizes,
        tensors=_tensors,
        layer_sets=LAYER_SETS,
        nested="text_config",
        renames=(("model.language_model.", "model."),),
        passed_over=(
            PassedOver("mtp.", "MTP layers"),
            PassedOver("model.visual.", "the vision tower", copied=True),
        ),
        ignored=frozenset(
            (
                *("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
                *("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "attn_output_gate", "mamba_ssm_dtype"),
            )
        ),
    ),
)
