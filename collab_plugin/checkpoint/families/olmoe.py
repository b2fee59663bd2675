"""OLMoE: router weights not renormalised, queries and keys normalised over all heads together."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, even_head
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_KEYS, Key, rope_keys
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    WIDE_QUERY_KEY_NORMS,
    Sizes,
    TensorRule,
    gated_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    heads, shared = c.integer("num_attention_heads"), c.integer("num_key_value_heads")
    if heads != shared:
        raise CollabError(
            f"{c.where} has {shared} key heads for {heads} heads; llama.cpp's olmoe computes equal numbers"
        )
    return rope_keys(c)


def _sizes(c: Config) -> Sizes:
    return decoder_sizes(c, head=even_head(c), experts="num_experts", expert_width="intermediate_size")


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (*OUTSIDE_BLOCKS, *BLOCK_NORMS, *GROUPED_QUERY, *WIDE_QUERY_KEY_NORMS, router_weights(), *gated_experts())


OLMOE = Family(
    name="olmoe",
    classes=("OlmoeForCausalLM",),
    architecture="olmoe",
    expert_counts=("num_experts", "num_local_experts"),
    decoder=Decoder(),
    conversion=Conversion(
        config_class="OlmoeConfig",
        defaults={
            "num_key_value_heads": 16,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 4096,
            "intermediate_size": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "norm_topk_prob": False,
            "hidden_act": "silu",
            "attention_bias": False,
            "clip_qkv": None,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "clip_qkv": (None,),
            "tie_word_embeddings": (False,),
        },
        renormalises="norm_topk_prob",
        keys=(*GROUPED_KEYS, Key("expert_count", "num_experts")),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
    ),
)
