"""A family of models: dots.llm1 (transformers' Dots1, llama.cpp's dots1)."""

from __future__ import annotations

from collab_plugin import (
    BLOCK_NORMS,
    DECODER_KEYS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Config,
    Conversion,
    Decoder,
    Family,
    Key,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    rope_keys,
    router_weights,
)


def sizes(config: Config) -> dict[str, int]:
    return {
        "vocabulary": config.integer("vocab_size"),
        "hidden": config.integer("hidden_size"),
        "heads": config.integer("num_attention_heads"),
        "kv_heads": config.integer("num_attention_heads"),  # llama.cpp's dots1 has no shared keys
        "head": config.integer("head_dim"),
        "width": config.integer("intermediate_size"),
        "experts": config.integer("n_routed_experts"),
        "expert_width": config.integer("moe_intermediate_size"),
        "shared": config.integer("n_shared_experts"),
    }


def tensors(config: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *GROUPED_QUERY,
        block_tensor("self_attn.q_norm.weight", "attn_q_norm.weight", "head"),
        block_tensor("self_attn.k_norm.weight", "attn_k_norm.weight", "head"),
        *dense_feed_forward(),
        router_weights(),
        block_tensor("mlp.gate.e_score_correction_bias", "exp_probs_b.bias", "experts", layers="experts"),
        *gated_experts(),
        *dense_feed_forward("mlp.shared_experts", "_shexp", "shared*expert_width", "experts"),
    )


DOTS1 = Family(
    name="dots1",
    classes=("Dots1ForCausalLM",),
    architecture="dots1",
    expert_counts=("n_routed_experts", "num_local_experts"),
    router=("gate.weight", "gate.e_score_correction_bias"),
    decoder=Decoder(),
    conversion=Conversion(
        config_class="Dots1Config",
        defaults={
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={"hidden_act": ("silu",), "attention_bias": (False,), "n_group": (1,), "tie_word_embeddings": (False,)},
        renormalises="norm_topk_prob",
        keys=(
            *DECODER_KEYS,
            Key("attention.head_count_kv", "num_attention_heads"),
            Key("attention.key_length", "head_dim"),
            Key("attention.value_length", "head_dim"),
            Key("leading_dense_block_count", "first_k_dense_replace"),
            Key("expert_count", "n_routed_experts"),
            Key("expert_feed_forward_length", "moe_intermediate_size"),
            Key("expert_shared_count", "n_shared_experts"),
            Key("expert_weights_scale", "routed_scaling_factor", float),
            Key("expert_gating_func", 2),
        ),
        more_keys=rope_keys,
        sizes=sizes,
        tensors=tensors,
        dense=lambda config, layer: layer < config.integer("first_k_dense_replace"),
        ignored=frozenset(("num_key_value_heads", "topk_group", "sliding_window", "layer_types")),
    ),
)
