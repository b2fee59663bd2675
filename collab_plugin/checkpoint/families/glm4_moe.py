"""GLM-4.5, 4.6 and 4.7: sigmoid router with bias, half of each head rotated, biases of queries, keys and values."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, head_length
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family, Prediction
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_EXPERTS, GROUPED_KEYS, head_keys, rope_keys
from collab_plugin.checkpoint.families.tensors import (
    BIASED_SHARED_EXPERTS,
    BIASES,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    QUERY_KEY_NORMS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
)
from collab_plugin.formats.gguf_values import MetaValue

GLM_TOKENS = {"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>"}
"""Without them llama.cpp writes on behind a turn's end (conversion/base.py, _set_vocab_glm)."""


def _keys(c: Config) -> dict[str, MetaValue]:
    head = head_length(c)
    return head_keys(head) | rope_keys(c, head)


def _sizes(c: Config) -> Sizes:
    more = {"width": "intermediate_size", "shared": "n_shared_experts"}
    return decoder_sizes(c, experts="n_routed_experts", expert_width="moe_intermediate_size", **more)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        block_tensor("input_layernorm.weight", "attn_norm.weight", "hidden"),
        block_tensor("post_attention_layernorm.weight", "post_attention_norm.weight", "hidden"),
        *GROUPED_QUERY,
        *(BIASES if c.flag("attention_bias") else ()),
        *(QUERY_KEY_NORMS if c.flag("use_qk_norm") else ()),
        *dense_feed_forward(),
        *BIASED_SHARED_EXPERTS,
    )


GLM4_MOE = Family(
    name="glm4-moe",
    classes=("Glm4MoeForCausalLM",),
    architecture="glm4moe",
    expert_counts=("n_routed_experts",),
    router=("gate.weight", "gate.e_score_correction_bias"),
    remark="GLM-4.5, 4.6, 4.7; MTP layers are dropped with a note",
    decoder=Decoder(),
    conversion=Conversion(
        config_class="Glm4MoeConfig",
        defaults={
            "num_key_value_heads": 8,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 131072,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "use_qk_norm": False,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={"hidden_act": ("silu",)},
        renormalises="norm_topk_prob",
        keys=(*GROUPED_KEYS, *GROUPED_EXPERTS),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=lambda c, layer: layer < c.integer("first_k_dense_replace"),
        prediction=Prediction("num_nextn_predict_layers", ("eh_proj.weight", "enorm.weight", "hnorm.weight")),
        ignored=frozenset(("num_mtp_layers",)),
        special_tokens=GLM_TOKENS,
    ),
)
