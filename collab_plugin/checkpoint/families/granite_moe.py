"""Granite-MoE 3.x: fused experts, multipliers of embedding, residuals, attention and logits; shared experts in some."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, even_head
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, rope_keys, u32
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    OUTSIDE_BLOCKS,
    PAIRED_QUERY,
    Sizes,
    TensorRule,
    block_tensor,
    fused_experts,
    half,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    sizes = _sizes(c)
    keys = {"attention.head_count_kv": u32(sizes["kv_heads"]), "rope.dimension_count": u32(sizes["head"])}
    if c.get("shared_intermediate_size"):
        keys["expert_shared_feed_forward_length"] = u32(c.integer("shared_intermediate_size"))
    return keys | rope_keys(c)


def _sizes(c: Config) -> Sizes:
    widths = {"expert_width": "intermediate_size", "shared_width": "shared_intermediate_size"}
    return decoder_sizes(c, head=even_head(c), experts="num_local_experts", **widths)


_IN, _SHARED = "block_sparse_moe.input_linear.weight", "shared_mlp.input_linear.weight"
_ROWS = "experts 2*expert_width hidden"
_EXPERTS = (
    router_weights("block_sparse_moe.router.layer.weight"),
    block_tensor(_IN, "ffn_gate_exps.weight", _ROWS, fused_experts(0, 2), "experts"),
    block_tensor(_IN, "ffn_up_exps.weight", _ROWS, fused_experts(1, 2), "experts"),
    block_tensor(
        "block_sparse_moe.output_linear.weight",
        "ffn_down_exps.weight",
        "experts hidden expert_width",
        fused_experts(),
        "experts",
    ),
)
_SHARED_EXPERT = (
    block_tensor(_SHARED, "ffn_gate_shexp.weight", "2*shared_width hidden", half(0), "experts"),
    block_tensor(_SHARED, "ffn_up_shexp.weight", "2*shared_width hidden", half(1), "experts"),
    block_tensor("shared_mlp.output_linear.weight", "ffn_down_shexp.weight", "hidden shared_width", layers="experts"),
)
EXPERTS_AND_SHARED = (*_EXPERTS, *_SHARED_EXPERT)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    shared = _SHARED_EXPERT if c.get("shared_intermediate_size") else ()
    return (*OUTSIDE_BLOCKS, *BLOCK_NORMS, *PAIRED_QUERY, *_EXPERTS, *shared)


GRANITE_MOE = Family(
    name="granite-moe",
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    architecture="granitemoe",
    expert_counts=("num_local_experts",),
    blocks=("block_sparse_moe",),
    router=("router.layer.weight",),
    vllm=False,
    decoder=Decoder(interleaved_rope=True, scaled=True),
    conversion=Conversion(
        config_class="GraniteMoeSharedConfig",
        defaults={
            "num_key_value_heads": None,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 2048,
            "intermediate_size": 11008,
            "shared_intermediate_size": 0,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
        keys=(
            *DECODER_KEYS,
            Key("expert_count", "num_local_experts"),
            Key("attention.scale", "attention_multiplier", float),
            Key("embedding_scale", "embedding_multiplier", float),
            Key("residual_scale", "residual_multiplier", float),
            Key("logit_scale", "logits_scaling", float),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
    ),
)
