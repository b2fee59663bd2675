"""ERNIE-4.5 with experts: softmax router with a bias for the choice alone, shared experts, rotary pairs."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, head_length
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, expert_keys, head_keys, rope_keys, u32
from collab_plugin.checkpoint.families.tensors import (
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
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    last = c.get("moe_layer_end_index")
    if last not in (None, -1, c.integer("num_hidden_layers") - 1):
        raise CollabError(f"{c.where} has moe_layer_end_index = {str(last)[:20]}; llama.cpp has experts up to the last")
    shared = c.integer("moe_num_shared_experts") * c.integer("moe_intermediate_size")
    return {
        **head_keys(head_length(c), "rope.dimension_count"),
        **({"expert_shared_feed_forward_length": u32(shared)} if shared else {}),
        **rope_keys(c),
    }


def _dense(c: Config, layer: int) -> bool:
    return layer < c.integer("moe_layer_start_index") or (layer + 1) % max(c.integer("moe_layer_interval"), 1) != 0


def _sizes(c: Config) -> Sizes:
    more = {"width": "intermediate_size", "shared": "moe_num_shared_experts"}
    return decoder_sizes(c, experts="moe_num_experts", expert_width="moe_intermediate_size", **more)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    shared = dense_feed_forward("mlp.shared_experts", "_shexp", "shared*expert_width", "experts")
    bias = "mlp.moe_statics.e_score_correction_bias"
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *GROUPED_QUERY,
        *dense_feed_forward(),
        router_weights(),
        block_tensor(bias, "exp_probs_b.bias", "1 experts", vector, "experts"),
        *gated_experts(),
        *(shared if c.integer("moe_num_shared_experts") else ()),
    )


ERNIE45_MOE = Family(
    name="ernie4.5-moe",
    classes=("Ernie4_5_MoeForCausalLM",),
    architecture="ernie4_5-moe",
    expert_counts=("moe_num_experts", "num_experts"),
    router=("gate.weight", "moe_statics.e_score_correction_bias"),
    interleaved_rope=True,
    decoder=Decoder(interleaved_rope=True),
    conversion=Conversion(
        config_class="Ernie4_5_MoeConfig",
        defaults={
            "num_key_value_heads": 4,
            "moe_k": 6,
            "max_position_embeddings": 131072,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 1,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "use_bias": False,
            "tie_word_embeddings": True,
        },
        fixed={"hidden_act": ("silu",), "use_bias": (False,)},
        keys=(
            *(key for key in DECODER_KEYS if key.gguf != "expert_used_count"),
            Key("expert_used_count", "moe_k"),
            Key("attention.head_count_kv", "num_key_value_heads"),
            *expert_keys("moe_num_experts"),
            Key("expert_shared_count", "moe_num_shared_experts"),
            Key("interleave_moe_layer_step", "moe_layer_interval"),
            Key("leading_dense_block_count", "moe_layer_start_index"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=_dense,
        passed_over=(PassedOver("model.mtp_", "MTP layers"),),
        ignored=frozenset(("moe_norm_min", "moe_layer_end_index", "num_nextn_predict_layers", "moe_capacity")),
    ),
)
