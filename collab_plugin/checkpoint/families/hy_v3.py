"""Hy3: sigmoid router with bias, a shared expert, queries and keys normalised by head."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Family, Prediction
from collab_plugin.checkpoint.families.gguf_keys import (
    GROUPED_KEYS,
    SIGMOID,
    Key,
    expert_keys,
    head_keys,
    rope_keys,
    u32,
)
from collab_plugin.checkpoint.families.layer_kinds import behind_dense
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    QUERY_KEY_NORMS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    shared = c.integer("moe_intermediate_size") * c.integer("num_shared_experts")
    return {"expert_shared_feed_forward_length": u32(shared), **head_keys(c.integer("head_dim")), **rope_keys(c)}


def _sizes(c: Config) -> Sizes:
    more = {"width": "intermediate_size", "shared": "num_shared_experts"}
    return decoder_sizes(c, experts="num_experts", expert_width="moe_intermediate_size", **more)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *GROUPED_QUERY,
        *QUERY_KEY_NORMS,
        *dense_feed_forward(),
        router_weights("mlp.router.gate.weight"),
        block_tensor("mlp.expert_bias", "exp_probs_b", "experts", layers="experts"),
        *gated_experts(),
        *dense_feed_forward("mlp.shared_mlp", "_shexp", "shared*expert_width", "experts"),
    )


HY_V3 = Family(
    name="hy-v3",
    classes=("HYV3ForCausalLM",),
    architecture="hy_v3",
    expert_counts=("num_experts", "num_local_experts"),
    router=("router.gate.weight", "expert_bias"),
    remark="Hy3; MTP layers are dropped with a note",
    vllm=False,
    conversion=Conversion(
        config_class="HYV3Config",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 131072,
            "intermediate_size": 13312,
            "moe_intermediate_size": 1536,
            "num_shared_experts": 1,
            "router_scaling_factor": 2.826,
            "rms_norm_eps": 1e-5,
            "rope_theta": 11158840.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            # Not transformers' keys: its class computes just this.
            "route_norm": True,
            "first_k_dense_replace": 1,
        },
        fixed={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
        renormalises="route_norm",
        keys=(*GROUPED_KEYS, *expert_keys(), Key("expert_weights_scale", "router_scaling_factor", float), SIGMOID),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=behind_dense(),
        prediction=Prediction("num_nextn_predict_layers", ("eh_proj.weight", "enorm.weight", "hnorm.weight")),
        ignored=frozenset(("enable_moe_fp32_combine", "first_k_dense_replace", "mlp_layer_types")),
    ),
)
