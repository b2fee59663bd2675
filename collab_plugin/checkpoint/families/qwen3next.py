"""Qwen3-Next: gated delta nets with attention in every fourth layer, and a gated shared expert."""

from __future__ import annotations

import numpy as np

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family, PassedOver
from collab_plugin.checkpoint.families.linear_attention import (
    FULL_ATTENTION,
    LAYER_SETS,
    LINEAR_DEFAULTS,
    LINEAR_KEYS,
    NORMS,
    gates,
    linear_keys,
    linear_sizes,
    queries_keys_values,
)
from collab_plugin.checkpoint.families.qwen2moe import GATED_SHARED_EXPERT
from collab_plugin.checkpoint.families.tensors import (
    OUTSIDE_BLOCKS,
    TensorRule,
    block_tensor,
    computed,
    ordered,
    squeezed,
)

LINEAR = "linear_attn."
_DELTA_NET = (
    block_tensor(
        f"{LINEAR}in_proj_qkvz.weight", "attn_qkv.weight", "qkvz hidden", ordered(queries_keys_values), "linear"
    ),
    block_tensor(f"{LINEAR}in_proj_qkvz.weight", "attn_gate.weight", "qkvz hidden", ordered(gates), "linear"),
    block_tensor(f"{LINEAR}in_proj_ba.weight", "ssm_ba.weight", "2*value_heads hidden", layers="linear"),
    block_tensor(f"{LINEAR}conv1d.weight", "ssm_conv1d.weight", "qkv 1 kernel", squeezed, "linear"),
    block_tensor(f"{LINEAR}A_log", "ssm_a", "value_heads", computed(lambda values: -np.exp(values)), "linear"),
    block_tensor(f"{LINEAR}dt_bias", "ssm_dt.bias", "value_heads", layers="linear"),
    block_tensor(f"{LINEAR}norm.weight", "ssm_norm.weight", "value_length", layers="linear"),
    block_tensor(f"{LINEAR}out_proj.weight", "ssm_out.weight", "hidden values", layers="linear"),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (*OUTSIDE_BLOCKS[::2], *NORMS, *_DELTA_NET, *FULL_ATTENTION, *GATED_SHARED_EXPERT)


QWEN3_NEXT = Family(
    name="qwen3-next",
    classes=("Qwen3NextForCausalLM",),
    architecture="qwen3next",
    expert_counts=("num_experts",),
    remark="rows of linear attention reordered; MTP layers are dropped with a note",
    vllm=False,
    decoder=Decoder("delta-net"),
    conversion=Conversion(
        config_class="Qwen3NextConfig",
        defaults={
            **LINEAR_DEFAULTS,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "num_experts_per_tok": 10,
            "max_position_embeddings": 32768,
            "intermediate_size": 5632,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "norm_topk_prob": True,
            "hidden_act": "silu",
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
        },
        renormalises="norm_topk_prob",
        keys=LINEAR_KEYS,
        more_keys=linear_keys,
        sizes=linear_sizes,
        tensors=_tensors,
        layer_sets=LAYER_SETS,
        passed_over=(PassedOver("mtp.", "MTP layers"), PassedOver("model.mtp.", "MTP layers")),
    ),
)
