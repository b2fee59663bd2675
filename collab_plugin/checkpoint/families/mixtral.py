"""Mixtral: experts called w1, w3 and w2; a GGUF of it is a "llama", whose rotary embedding turns pairs."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, rope_keys, u32
from collab_plugin.checkpoint.families.qwen3moe import head_length
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    gated_experts,
    rotary_pairs,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    head = head_length(c)
    lengths = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    return dict.fromkeys(lengths, u32(head)) | rope_keys(c)


def _sizes(c: Config) -> Sizes:
    return {
        "vocabulary": c.integer("vocab_size"),
        "hidden": c.integer("hidden_size"),
        "heads": c.integer("num_attention_heads"),
        "kv_heads": c.integer("num_key_value_heads"),
        "head": head_length(c),
        "experts": c.integer("num_local_experts"),
        "expert_width": c.integer("intermediate_size"),
    }


_QUERIES_AND_KEYS = (
    block_tensor("self_attn.q_proj.weight", "attn_q.weight", "heads*head hidden", rotary_pairs("heads")),
    block_tensor("self_attn.k_proj.weight", "attn_k.weight", "kv_heads*head hidden", rotary_pairs("kv_heads")),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *_QUERIES_AND_KEYS,
        *GROUPED_QUERY[2:],
        router_weights("block_sparse_moe.gate.weight"),
        router_weights(),
        *gated_experts("block_sparse_moe.experts", ("w1", "w3", "w2")),
        *gated_experts(),
    )


MIXTRAL = Family(
    name="mixtral",
    classes=("MixtralForCausalLM",),
    architecture="llama",
    expert_counts=("num_local_experts",),
    blocks=("block_sparse_moe", "mlp"),
    decoder=Decoder(interleaved_rope=True),
    remark="rows of queries and keys reordered, for llama.cpp rotates pairs",
    conversion=Conversion(
        config_class="MixtralConfig",
        defaults={
            "num_key_value_heads": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 131072,
            "intermediate_size": 14336,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "hidden_act": "silu",
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        fixed={"hidden_act": ("silu",), "sliding_window": (None,)},
        keys=(
            *DECODER_KEYS,
            Key("attention.head_count_kv", "num_key_value_heads"),
            Key("expert_count", "num_local_experts"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
    ),
)
