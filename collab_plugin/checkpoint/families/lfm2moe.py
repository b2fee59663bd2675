"""LFM2-MoE: short convolutions with attention in some layers, sigmoid router with bias."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, even_head
from collab_plugin.checkpoint.families.family import Conversion, Family
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, SIGMOID, Key, expert_keys, integers, rope_keys
from collab_plugin.checkpoint.families.layer_kinds import FULL
from collab_plugin.checkpoint.families.tensors import (
    Sizes,
    TensorRule,
    block_tensor,
    gated_experts,
    router_weights,
    squeezed,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def _full(c: Config) -> list[bool]:
    kinds = c.kinds("layer_types", ("conv", FULL))
    if kinds is None:
        raise CollabError(f"{c.where} has no layer_types, which tell layers of attention from convolutions")
    return [kind == FULL for kind in kinds]


def _keys(c: Config) -> dict[str, MetaValue]:
    heads = c.integer("num_key_value_heads")
    return {"attention.head_count_kv": integers(heads if here else 0 for here in _full(c)), **rope_keys(c)}


def _sizes(c: Config) -> Sizes:
    widths = {"width": "intermediate_size", "expert_width": "moe_intermediate_size"}
    return decoder_sizes(c, head=even_head(c), experts="num_experts", kernel="conv_L_cache", **widths)


def _layers(layers: str, *rules: tuple[str, str, str]) -> tuple[TensorRule, ...]:
    return tuple(block_tensor(f"{a}.weight", f"{b}.weight", shape, layers=layers) for a, b, shape in rules)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        TensorRule("model.embed_tokens.weight", "token_embd.weight", "vocabulary hidden", layers="outside"),
        TensorRule("model.embedding_norm.weight", "token_embd_norm.weight", "hidden", layers="outside"),
        TensorRule("lm_head.weight", "output.weight", "vocabulary hidden", layers="outside"),
        *_layers("all", ("operator_norm", "attn_norm", "hidden"), ("ffn_norm", "ffn_norm", "hidden")),
        *_layers(
            "full",
            ("self_attn.q_proj", "attn_q", "heads*head hidden"),
            ("self_attn.k_proj", "attn_k", "kv_heads*head hidden"),
            ("self_attn.v_proj", "attn_v", "kv_heads*head hidden"),
            ("self_attn.out_proj", "attn_output", "hidden heads*head"),
            ("self_attn.q_layernorm", "attn_q_norm", "head"),
            ("self_attn.k_layernorm", "attn_k_norm", "head"),
        ),
        *_layers(
            "conv",
            ("conv.in_proj", "shortconv.in_proj", "3*hidden hidden"),
            ("conv.out_proj", "shortconv.out_proj", "hidden hidden"),
        ),
        block_tensor("conv.conv.weight", "shortconv.conv.weight", "hidden 1 kernel", squeezed, "conv"),
        *_layers(
            "dense",
            ("feed_forward.w1", "ffn_gate", "width hidden"),
            ("feed_forward.w3", "ffn_up", "width hidden"),
            ("feed_forward.w2", "ffn_down", "hidden width"),
        ),
        router_weights("feed_forward.gate.weight"),
        block_tensor("feed_forward.expert_bias", "exp_probs_b.bias", "experts", layers="experts"),
        *gated_experts("feed_forward.experts", ("w1", "w3", "w2")),
    )


LFM2_MOE = Family(
    name="lfm2-moe",
    classes=("Lfm2MoeForCausalLM",),
    architecture="lfm2moe",
    expert_counts=("num_experts", "num_local_experts"),
    blocks=("feed_forward",),
    router=("gate.weight", "expert_bias"),
    vllm=False,
    conversion=Conversion(
        config_class="Lfm2MoeConfig",
        defaults={
            "num_key_value_heads": 8,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 128000,
            "intermediate_size": 7168,
            "moe_intermediate_size": 1792,
            "num_dense_layers": 2,
            "norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "conv_L_cache": 3,
            "conv_bias": False,
            "use_expert_bias": True,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "tie_word_embeddings": True,
        },
        fixed={"conv_bias": (False,), "use_expert_bias": (True,), "routed_scaling_factor": (1.0,)},
        renormalises="norm_topk_prob",
        keys=(
            *(key for key in DECODER_KEYS if key.config != "rms_norm_eps"),
            Key("attention.layer_norm_rms_epsilon", "norm_eps", float),
            *expert_keys(),
            Key("leading_dense_block_count", "num_dense_layers"),
            Key("shortconv.l_cache", "conv_L_cache"),
            SIGMOID,
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=lambda c, layer: layer < c.integer("num_dense_layers"),
        layer_sets={"full": lambda c, layer: _full(c)[layer], "conv": lambda c, layer: not _full(c)[layer]},
    ),
)
