"""Qwen3-MoE: softmax router renormalised over the chosen experts, queries and keys normalised by head."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, head_length
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_KEYS, expert_keys, head_keys, rope_keys
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


def _keys(c: Config) -> dict[str, MetaValue]:
    return head_keys(head_length(c)) | rope_keys(c)


def _sizes(c: Config) -> Sizes:
    return decoder_sizes(c, experts="num_experts", expert_width="moe_intermediate_size")


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
        keys=(*GROUPED_KEYS, *expert_keys()),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        ignored=frozenset(("sliding_window",)),
    ),
)
