"""AFMoE (Trinity): sigmoid router with bias, gated attention, norms before and behind; layers with a window rotate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, head_length
from collab_plugin.checkpoint.families.family import Conversion, Family
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_KEYS, Key, expert_keys, head_keys, rope_keys
from collab_plugin.checkpoint.families.layer_kinds import windows
from collab_plugin.checkpoint.families.tensors import (
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
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_EVERY = 4  # of llama.cpp's graph


def _keys(c: Config) -> dict[str, MetaValue]:
    if windows(c, c.integer("global_attn_every_n_layers")) != [
        (layer + 1) % _EVERY != 0 for layer in range(c.integer("num_hidden_layers"))
    ]:
        raise CollabError(f"{c.where} has other layers without a window than every fourth, which llama.cpp's afmoe has")
    return {**head_keys(head_length(c), "rope.dimension_count"), **rope_keys(c)}


def _sizes(c: Config) -> Sizes:
    more = {"width": "intermediate_size", "shared": "num_shared_experts"}
    return decoder_sizes(c, experts="num_experts", expert_width="moe_intermediate_size", **more)


_NORMS = tuple(
    block_tensor(f"{stored}.weight", f"{gguf}.weight", "hidden")
    for stored, gguf in (
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_mlp_layernorm", "ffn_norm"),
        ("post_mlp_layernorm", "post_ffw_norm"),
    )
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *_NORMS,
        *GROUPED_QUERY,
        *QUERY_KEY_NORMS,
        block_tensor("self_attn.gate_proj.weight", "attn_gate.weight", "heads*head hidden"),
        *dense_feed_forward(),
        router_weights("mlp.router.gate.weight"),
        block_tensor("mlp.expert_bias", "exp_probs_b.bias", "experts", layers="experts"),
        *gated_experts(),
        *dense_feed_forward("mlp.shared_experts", "_shexp", "shared*expert_width", "experts"),
    )


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """As many heads of keys as of queries where config.json tells no number."""
    told = config.get("num_key_value_heads") is not None
    return {} if told else {"num_key_value_heads": config.get("num_attention_heads")}


AFMOE = Family(
    name="afmoe",
    classes=("AfmoeForCausalLM",),
    architecture="afmoe",
    expert_counts=("num_experts", "num_local_experts"),
    router=("router.gate.weight", "expert_bias"),
    remark="Trinity; the published tokenizer splits numbers in a way of its own and is refused",
    vllm=False,
    conversion=Conversion(
        config_class="AfmoeConfig",
        defaults={
            "num_key_value_heads": None,
            "head_dim": 128,
            "num_experts_per_tok": 6,
            "max_position_embeddings": 16384,
            "intermediate_size": 6144,
            "moe_intermediate_size": 1408,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.0,
            "global_attn_every_n_layers": _EVERY,
            "sliding_window": 1024,
            "mup_enabled": False,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            # Not transformers' key: its class computes just this.
            "route_norm": True,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mup_enabled": (True,),
            "score_func": (None, "sigmoid"),
            "n_group": (None, 1),
            "topk_group": (None, 1),
        },
        renormalises="route_norm",
        keys=(
            *GROUPED_KEYS,
            *expert_keys(),
            Key("expert_shared_count", "num_shared_experts"),
            Key("leading_dense_block_count", "num_dense_layers"),
            Key("expert_weights_scale", "route_scale", float),
            Key("attention.sliding_window", "sliding_window"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=lambda c, layer: layer < c.integer("num_dense_layers"),
        settled=_settled,
        ignored=frozenset(("num_expert_groups", "num_limited_groups", "load_balance_coeff", "use_grouped_mm")),
    ),
)
