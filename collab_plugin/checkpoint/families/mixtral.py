"""Mixtral: experts called w1, w3 and w2; a GGUF of it is a "llama", whose rotary embedding turns pairs."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, head_length
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_KEYS, Key, head_keys, rope_keys
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    OUTSIDE_BLOCKS,
    PAIRED_QUERY,
    Sizes,
    TensorRule,
    gated_experts,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    return head_keys(head_length(c), "rope.dimension_count") | rope_keys(c)


def _sizes(c: Config) -> Sizes:
    return decoder_sizes(c, experts="num_local_experts", expert_width="intermediate_size")


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *PAIRED_QUERY,
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
        keys=(*GROUPED_KEYS, Key("expert_count", "num_local_experts")),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
    ),
)
