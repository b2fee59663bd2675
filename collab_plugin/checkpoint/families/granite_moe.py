"""Granite-MoE 3.x: fused experts, multipliers of embedding, residuals, attention and logits; shared experts in some."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Family
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, rope_keys, u32
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    fused_experts,
    half,
    rotary_pairs,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue


def _head(c: Config) -> int:
    return c.integer("hidden_size") // max(c.integer("num_attention_heads"), 1)


def _kv_heads(c: Config) -> int:
    return c.integer("num_attention_heads" if c.get("num_key_value_heads") is None else "num_key_value_heads")


def _keys(c: Config) -> dict[str, MetaValue]:
    keys = {"attention.head_count_kv": u32(_kv_heads(c)), "rope.dimension_count": u32(_head(c))} | rope_keys(c)
    if c.get("shared_intermediate_size"):
        keys["expert_shared_feed_forward_length"] = u32(c.integer("shared_intermediate_size"))
    return keys


def _sizes(c: Config) -> Sizes:
    return {
        "vocabulary": c.integer("vocab_size"),
        "hidden": c.integer("hidden_size"),
        "heads": c.integer("num_attention_heads"),
        "kv_heads": _kv_heads(c),
        "head": _head(c),
        "experts": c.integer("num_local_experts"),
        "expert_width": c.integer("intermediate_size"),
        "shared_width": c.integer("shared_intermediate_size"),
    }


_QUERIES_AND_KEYS = (
    block_tensor("self_attn.q_proj.weight", "attn_q.weight", "heads*head hidden", rotary_pairs("heads")),
    block_tensor("self_attn.k_proj.weight", "attn_k.weight", "kv_heads*head hidden", rotary_pairs("kv_heads")),
)
_IN, _SHARED = "block_sparse_moe.input_linear.weight", "shared_mlp.input_linear.weight"
_ROWS = "experts 2*expert_width hidden"
_EXPERTS = (
    router_weights("block_sparse_moe.router.layer.weight"),
    block_tensor(_IN, "ffn_gate_exps.weight", _ROWS, fused_experts(0, 2), "experts"),
    block_tensor(_IN, "ffn_up_exps.weight", _ROWS, fused_experts(1, 2), "experts"),
    block_tensor(
        "block_sparse_moe.output_linear.weight",
        "ffn_down_exps.weight",
        "experts hidden expert_width",
        fused_experts(),
        "experts",
    ),
)
_SHARED_EXPERT = (
    block_tensor(_SHARED, "ffn_gate_shexp.weight", "2*shared_width hidden", half(0), "experts"),
    block_tensor(_SHARED, "ffn_up_shexp.weight", "2*shared_width hidden", half(1), "experts"),
    block_tensor("shared_mlp.output_linear.weight", "ffn_down_shexp.weight", "hidden shared_width", layers="experts"),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    shared = _SHARED_EXPERT if c.get("shared_intermediate_size") else ()
    return (*OUTSIDE_BLOCKS, *BLOCK_NORMS, *_QUERIES_AND_KEYS, *GROUPED_QUERY[2:], *_EXPERTS, *shared)


GRANITE_MOE = Family(
    name="granite-moe",
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    architecture="granitemoe",
    expert_counts=("num_local_experts",),
    blocks=("block_sparse_moe",),
    router=("router.layer.weight",),
    vllm=False,
    conversion=Conversion(
        config_class="GraniteMoeSharedConfig",
        defaults={
            "num_key_value_heads": None,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 2048,
            "intermediate_size": 11008,
            "shared_intermediate_size": 0,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
        keys=(
            *DECODER_KEYS,
            Key("expert_count", "num_local_experts"),
            Key("attention.scale", "attention_multiplier", float),
            Key("embedding_scale", "embedding_multiplier", float),
            Key("residual_scale", "residual_multiplier", float),
            Key("logit_scale", "logits_scaling", float),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
    ),
)
