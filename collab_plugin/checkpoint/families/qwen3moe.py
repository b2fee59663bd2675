"""Qwen3-MoE: softmax router renormalised over the chosen experts, queries and keys normalised by head."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, rope_keys, u32
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    QUERY_KEY_NORMS,
    Sizes,
    TensorRule,
    gated_experts,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue

COUNTS = ("num_experts", "num_local_experts")


def head_length(c: Config) -> int:
    """head_dim, or what an older config.json means without it."""
    if c.get("head_dim") is not None:
        return c.integer("head_dim")
    return c.integer("hidden_size") // max(c.integer("num_attention_heads"), 1)


def _keys(c: Config) -> dict[str, MetaValue]:
    head = head_length(c)
    return {"attention.key_length": u32(head), "attention.value_length": u32(head)} | rope_keys(c)


def _sizes(c: Config) -> Sizes:
    return {
        "vocabulary": c.integer("vocab_size"),
        "hidden": c.integer("hidden_size"),
        "heads": c.integer("num_attention_heads"),
        "kv_heads": c.integer("num_key_value_heads"),
        "head": head_length(c),
        "experts": c.integer("num_experts"),
        "expert_width": c.integer("moe_intermediate_size"),
    }


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (*OUTSIDE_BLOCKS, *BLOCK_NORMS, *GROUPED_QUERY, *QUERY_KEY_NORMS, router_weights(), *gated_experts())


QWEN3_MOE = Family(
    name="qwen3-moe",
    classes=("Qwen3MoeForCausalLM",),
    architecture="qwen3moe",
    expert_counts=COUNTS,
    decoder=Decoder(),
    conversion=Conversion(
        config_class="Qwen3MoeConfig",
        defaults={
            "num_key_value_heads": 4,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 32768,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "norm_topk_prob": False,
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "decoder_sparse_step": 1,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "use_sliding_window": (False,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
        },
        renormalises="norm_topk_prob",
        keys=(
            *DECODER_KEYS,
            Key("attention.head_count_kv", "num_key_value_heads"),
            Key("expert_count", "num_experts"),
            Key("expert_feed_forward_length", "moe_intermediate_size"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        ignored=frozenset(("sliding_window",)),
    ),
)
