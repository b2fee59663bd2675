"""DeepSeek-V3 and what shares its class (R1, Kimi-K2): MLA, sigmoid router with bias and groups, shared experts."""

from __future__ import annotations

from gguf import ExpertGatingFuncType

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family, Prediction
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, rope_keys, u32
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    OUTSIDE_BLOCKS,
    ROUTER_BIAS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    key_heads,
    router_weights,
    value_heads,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def latent_keys(c: Config) -> dict[str, MetaValue]:
    rank, rope = c.integer("kv_lora_rank"), c.integer("qk_rope_head_dim")
    sigmoid = c.get("scoring_func") == "sigmoid"
    keys = {
        # The absorbed form is one key-value head of the latent's width (conversion/deepseek.py:338-361).
        "attention.head_count_kv": u32(1),
        "attention.key_length": u32(rank + rope),
        "attention.value_length": u32(rank),
        "attention.key_length_mla": u32(c.integer("qk_nope_head_dim") + rope),
        "expert_gating_func": u32(int(ExpertGatingFuncType.SIGMOID if sigmoid else ExpertGatingFuncType.SOFTMAX)),
    }
    if c.get("n_group") is not None and c.integer("n_group") > 1:
        if not _biased(c):
            raise CollabError(
                f"{c.where} has topk_method = {c.get('topk_method')!r} and n_group = {c.integer('n_group')}, groups "
                "that llama.cpp does not choose in this way; only 'noaux_tc' has groups here"
            )
        keys["expert_group_count"] = u32(c.integer("n_group"))
        keys["expert_group_used_count"] = u32(c.integer("topk_group"))
    return keys | rope_keys(c)


def _biased(c: Config) -> bool:
    return bool(c.get("topk_method") == "noaux_tc")


def _dense(c: Config, layer: int) -> bool:
    return layer < c.integer("first_k_dense_replace")


def latent_sizes(c: Config) -> Sizes:
    return {
        "vocabulary": c.integer("vocab_size"),
        "hidden": c.integer("hidden_size"),
        "width": c.integer("intermediate_size"),
        "heads": c.integer("num_attention_heads"),
        "q_rank": c.integer("q_lora_rank") if c.get("q_lora_rank") is not None else 0,
        "rank": c.integer("kv_lora_rank"),
        "nope": c.integer("qk_nope_head_dim"),
        "value": c.integer("v_head_dim"),
        "key": c.integer("qk_nope_head_dim") + c.integer("qk_rope_head_dim"),
        "rank_and_rope": c.integer("kv_lora_rank") + c.integer("qk_rope_head_dim"),
        "key_and_value": c.integer("qk_nope_head_dim") + c.integer("v_head_dim"),
        "experts": c.integer("n_routed_experts"),
        "shared": c.integer("n_shared_experts"),
        "expert_width": c.integer("moe_intermediate_size"),
    }


LATENT_ATTENTION = (
    block_tensor("self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight", "rank_and_rope hidden"),
    block_tensor("self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight", "rank"),
    block_tensor("self_attn.kv_b_proj.weight", "attn_k_b.weight", "heads*key_and_value rank", key_heads),
    block_tensor("self_attn.kv_b_proj.weight", "attn_v_b.weight", "heads*key_and_value rank", value_heads),
    block_tensor("self_attn.o_proj.weight", "attn_output.weight", "hidden heads*value"),
)
_QUERIES = (block_tensor("self_attn.q_proj.weight", "attn_q.weight", "heads*key hidden"),)
LATENT_QUERIES = (
    block_tensor("self_attn.q_a_proj.weight", "attn_q_a.weight", "q_rank hidden"),
    block_tensor("self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight", "q_rank"),
    block_tensor("self_attn.q_b_proj.weight", "attn_q_b.weight", "heads*key q_rank"),
)


def latent_tensors(c: Config) -> tuple[TensorRule, ...]:
    shared = dense_feed_forward("mlp.shared_experts", "_shexp", "shared*expert_width", "experts")
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *(_QUERIES if c.get("q_lora_rank") is None else LATENT_QUERIES),
        *LATENT_ATTENTION,
        *dense_feed_forward(),
        router_weights(),
        *((ROUTER_BIAS,) if _biased(c) else ()),
        *gated_experts(),
        *(shared if c.integer("n_shared_experts") else ()),
    )


DEEPSEEK_V3 = Family(
    name="deepseek-v3",
    classes=("DeepseekV3ForCausalLM",),
    architecture="deepseek2",
    expert_counts=("n_routed_experts", "num_local_experts"),
    router=("gate.weight", "gate.e_score_correction_bias"),
    interleaved_rope=True,
    decoder=Decoder("latent", interleaved_rope=True),
    remark="MLA in absorbed form; MTP layers are dropped with a note",
    conversion=Conversion(
        config_class="DeepseekV3Config",
        defaults={
            "max_position_embeddings": 4096,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "first_k_dense_replace": 3,
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "hidden_act": "silu",
            "attention_bias": False,
            "rope_interleave": True,
            "tie_word_embeddings": False,
            "num_nextn_predict_layers": 1,
            # Not transformers' keys: its class computes just this, and vLLM's reads them.
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "rope_interleave": (True,),
            "scoring_func": ("sigmoid", "softmax"),
            "topk_method": ("noaux_tc", "greedy"),
            "moe_layer_freq": (1,),
        },
        renormalises="norm_topk_prob",
        keys=(
            *DECODER_KEYS,
            Key("attention.kv_lora_rank", "kv_lora_rank"),
            Key("attention.q_lora_rank", "q_lora_rank", optional=True),
            Key("attention.value_length_mla", "v_head_dim"),
            Key("rope.dimension_count", "qk_rope_head_dim"),
            Key("leading_dense_block_count", "first_k_dense_replace"),
            Key("expert_count", "n_routed_experts"),
            Key("expert_feed_forward_length", "moe_intermediate_size"),
            Key("expert_shared_count", "n_shared_experts"),
            Key("expert_weights_scale", "routed_scaling_factor", float),
        ),
        more_keys=latent_keys,
        sizes=latent_sizes,
        tensors=latent_tensors,
        dense=_dense,
        prediction=Prediction("num_nextn_predict_layers", ("eh_proj.weight", "enorm.weight", "hnorm.weight")),
        ignored=frozenset(("num_key_value_heads", "qk_head_dim", "num_mtp_layers")),
    ),
)
