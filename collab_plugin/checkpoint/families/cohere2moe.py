"""Command with experts (Cohere2-MoE): experts beside the attention, layers with a window rotate pairs, the embedding is
the output matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Family, Prediction
from collab_plugin.checkpoint.families.gguf_keys import (
    GROUPED_KEYS,
    Key,
    expert_keys,
    flag,
    head_keys,
    rope_keys,
    text,
    u32,
)
from collab_plugin.checkpoint.families.layer_kinds import behind_dense, leading_dense, window_keys
from collab_plugin.checkpoint.families.tensors import (
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    dense = leading_dense(c)
    if dense and c.integer("prefix_dense_sliding_window_pattern") != 1:
        raise CollabError(f"{c.where} has windows in layers without experts, which llama.cpp's cohere2moe rotates")
    scores = c.get("expert_selection_fn")
    if scores not in ("softmax", "sigmoid"):
        raise CollabError(f"{c.where} has expert_selection_fn = {str(scores)[:40]}; softmax and sigmoid are read here")
    softmax = scores == "softmax"
    return {
        **head_keys(c.integer("head_dim"), "rope.dimension_count"),
        **window_keys(c),
        "feed_forward_length": u32(_sizes(c)["width"]),
        "leading_dense_block_count": u32(dense),
        "rope.scaling.type": text("none"),
        # A softmax over the chosen experts is one over all of them, renormalised.
        "expert_gating_func": u32(1 if softmax else 2),
        "expert_weights_norm": flag(softmax or c.flag("norm_topk_prob")),
        **rope_keys(c),
        **_shared(c),
    }


def _shared(c: Config) -> dict[str, MetaValue]:
    count = c.integer("num_shared_experts")
    if not count:
        return {}
    width = u32(count * c.integer("intermediate_size"))
    return {"expert_shared_count": u32(count), "expert_shared_feed_forward_length": width}


def _sizes(c: Config) -> Sizes:
    dense = "intermediate_size" if c.get("prefix_dense_intermediate_size") is None else "prefix_dense_intermediate_size"
    more = {"expert_width": "intermediate_size", "shared": "num_shared_experts", "width": dense}
    return decoder_sizes(c, experts="num_experts", **more)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    shared = dense_feed_forward("mlp.shared_experts", "_shexp", "shared*expert_width", "experts")
    return (
        *OUTSIDE_BLOCKS,
        block_tensor("input_layernorm.weight", "attn_norm.weight", "hidden"),
        *GROUPED_QUERY,
        *dense_feed_forward(),
        router_weights(),
        *gated_experts(),
        *(shared if c.integer("num_shared_experts") else ()),
    )


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """As many heads of keys as of queries where config.json tells no number."""
    told = config.get("num_key_value_heads") is not None
    return {} if told else {"num_key_value_heads": config.get("num_attention_heads")}


COHERE2_MOE = Family(
    name="cohere2-moe",
    classes=("Cohere2MoeForCausalLM",),
    architecture="cohere2moe",
    expert_counts=("num_experts", "num_local_experts"),
    interleaved_rope=True,
    remark="MTP layers are dropped with a note",
    vllm=False,
    conversion=Conversion(
        config_class="Cohere2MoeConfig",
        defaults={
            "num_key_value_heads": None,
            "head_dim": 128,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 8192,
            "intermediate_size": 22528,
            "num_shared_experts": 0,
            "shared_expert_combination_strategy": "average",
            "expert_selection_fn": "softmax",
            "norm_topk_prob": True,
            "prefix_dense_sliding_window_pattern": 1,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "layer_norm_eps": 1e-5,
            "rms_norm_eps": None,
            "logit_scale": 0.0625,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": True,
            # Not transformers' key, which has it in mlp_layer_types.
            "first_k_dense_replace": 0,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "shared_expert_combination_strategy": ("average",),
            "sliding_window_pattern": (4,),
        },
        keys=(
            *(key for key in GROUPED_KEYS if key.config not in ("rms_norm_eps", "intermediate_size")),
            *expert_keys("num_experts", "intermediate_size"),
            Key("attention.layer_norm_epsilon", "layer_norm_eps", float),
            Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", float, optional=True),
            Key("attention.sliding_window", "sliding_window"),
            Key("logit_scale", "logit_scale", float),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=behind_dense(),
        settled=_settled,
        prediction=Prediction("num_nextn_predict_layers", ("eh_proj.weight", "enorm.weight", "hnorm.weight")),
        ignored=frozenset(
            ("first_k_dense_replace", "norm_topk_prob", "prefix_dense_sliding_window_pattern", "layer_types")
        ),
    ),
)
