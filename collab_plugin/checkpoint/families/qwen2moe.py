"""Qwen2-MoE (Qwen1.5-MoE): router weights not renormalised, biases of queries, keys and values, a gated shared
expert."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, even_head
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_KEYS, Key, expert_keys, rope_keys
from collab_plugin.checkpoint.families.tensors import (
    BIASES,
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    router_weights,
    vector,
)

GATED_SHARED_EXPERT = (
    router_weights(),
    *gated_experts(),
    *dense_feed_forward("mlp.shared_expert", "_shexp", "shared_width", "experts"),
    block_tensor("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight", "1 hidden", vector, "experts"),
)
"""Experts, and one that every token uses, as far as its gate lets it."""


def _sizes(c: Config) -> Sizes:
    widths = {"expert_width": "moe_intermediate_size", "shared_width": "shared_expert_intermediate_size"}
    widths = {"expert_width": "moe_intermediate_size", "shared_width": "shared_expert_intermediate_size"}
    return decoder_sizes(c, head=even_head(c), experts="num_experts", **widths)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *GROUPED_QUERY,
        *(BIASES if c.flag("qkv_bias") else ()),
        *GATED_SHARED_EXPERT,
    )


QWEN2_MOE = Family(
    name="qwen2-moe",
    classes=("Qwen2MoeForCausalLM",),
    architecture="qwen2moe",
    expert_counts=("num_experts",),
    decoder=Decoder(),
    remark="shared expert with its gate",
    conversion=Conversion(
        config_class="Qwen2MoeConfig",
        defaults={
            "num_key_value_heads": 16,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 32768,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "norm_topk_prob": False,
            "qkv_bias": True,
            "hidden_act": "silu",
            "use_sliding_window": False,
            "decoder_sparse_step": 1,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "use_sliding_window": (False,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
            "tie_word_embeddings": (False,),
        },
        renormalises="norm_topk_prob",
        keys=(
            *GROUPED_KEYS,
            *expert_keys(),
            Key("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ),
        more_keys=rope_keys,
        sizes=_sizes,
        tensors=_tensors,
        ignored=frozenset(("sliding_window", "layer_types")),
    ),
)
