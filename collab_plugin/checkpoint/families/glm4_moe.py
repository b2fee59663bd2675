"""GLM-4.5, 4.6 and 4.7: sigmoid router with bias, half of each head rotated, biases of queries, keys and values."""

from __future__ import annotations

from gguf import ExpertGatingFuncType

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Family, Prediction
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, rope_keys, u32
from collab_plugin.checkpoint.families.qwen3moe import head_length
from collab_plugin.checkpoint.families.tensors import (
    BIASES,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    QUERY_KEY_NORMS,
    ROUTER_BIAS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue

GLM_TOKENS = {"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>"}
"""Without them llama.cpp writes on behind a turn's end (conversion/base.py, _set_vocab_glm)."""


def _keys(c: Config) -> dict[str, MetaValue]:
    head = head_length(c)
    return {"attention.key_length": u32(head), "attention.value_length": u32(head)} | rope_keys(c, head)


def _sizes(c: Config) -> Sizes:
    return {
        "vocabulary": c.integer("vocab_size"),
        "hidden": c.integer("hidden_size"),
        "width": c.integer("intermediate_size"),
        "heads": c.integer("num_attention_heads"),
        "kv_heads": c.integer("num_key_value_heads"),
        "head": head_length(c),
        "experts": c.integer("n_routed_experts"),
        "expert_width": c.integer("moe_intermediate_size"),
        "shared": c.integer("n_shared_experts"),
    }


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        block_tensor("input_layernorm.weight", "attn_norm.weight", "hidden"),
        block_tensor("post_attention_layernorm.weight", "post_attention_norm.weight", "hidden"),
        *GROUPED_QUERY,
        *(BIASES if c.flag("attention_bias") else ()),
        *(QUERY_KEY_NORMS if c.flag("use_qk_norm") else ()),
        *dense_feed_forward(),
        router_weights(),
        ROUTER_BIAS,
        *gated_experts(),
        *dense_feed_forward("mlp.shared_experts", "_shexp", "shared*expert_width", "experts"),
    )


GLM4_MOE = Family(
    name="glm4-moe",
    classes=("Glm4MoeForCausalLM",),
    architecture="glm4moe",
    expert_counts=("n_routed_experts",),
    router=("gate.weight", "gate.e_score_correction_bias"),
    remark="GLM-4.5, 4.6, 4.7; MTP layers are dropped with a note",
    conversion=Conversion(
        config_class="Glm4MoeConfig",
        defaults={
            "num_key_value_heads": 8,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 131072,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "use_qk_norm": False,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={"hidden_act": ("silu",)},
        renormalises="norm_topk_prob",
        keys=(
            *DECODER_KEYS,
            Key("attention.head_count_kv", "num_key_value_heads"),
            Key("leading_dense_block_count", "first_k_dense_replace"),
            Key("expert_count", "n_routed_experts"),
            Key("expert_feed_forward_length", "moe_intermediate_size"),
            Key("expert_shared_count", "n_shared_experts"),
            Key("expert_group_count", "n_group"),
            Key("expert_group_used_count", "topk_group"),
            Key("expert_weights_scale", "routed_scaling_factor", float),
            Key("expert_gating_func", int(ExpertGatingFuncType.SIGMOID)),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=lambda c, layer: layer < c.integer("first_k_dense_replace"),
        prediction=Prediction("num_nextn_predict_layers", ("eh_proj.weight", "enorm.weight", "hnorm.weight")),
        ignored=frozenset(("num_mtp_layers",)),
        special_tokens=GLM_TOKENS,
    ),
)
