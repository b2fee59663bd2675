"""GLM-5: DeepSeek's latent attention with an indexer that chooses what a token attends to."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.deepseek_v3 import LATENT_ATTENTION, LATENT_QUERIES, latent_sizes
from collab_plugin.checkpoint.families.deepseek_v32 import INDEXER_KEYS, indexer_sizes, indexer_tensors
from collab_plugin.checkpoint.families.family import Conversion, Family, Prediction
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, GROUPED_EXPERTS, Key, flags, rope_keys, u32
from collab_plugin.checkpoint.families.glm4_moe import GLM_TOKENS
from collab_plugin.checkpoint.families.tensors import (
    BIASED_SHARED_EXPERTS,
    BLOCK_NORMS,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    dense_feed_forward,
)
from collab_plugin.formats.gguf_values import MetaValue


def _indexers(c: Config) -> list[bool]:
    """For each layer whether it has an indexer of its own; the others attend to what the one before chose."""
    told = c.kinds("indexer_types", ("shared", "full"))
    return [True] * c.integer("num_hidden_layers") if told is None else [kind == "full" for kind in told]


def _keys(c: Config) -> dict[str, MetaValue]:
    rank, rope = c.integer("kv_lora_rank"), c.integer("qk_rope_head_dim")
    keys = {
        "attention.head_count_kv": u32(1),  # as DeepSeek's absorbed form
        "attention.key_length": u32(rank + rope),
        "attention.value_length": u32(rank),
        "attention.key_length_mla": u32(c.integer("qk_nope_head_dim") + rope),
        **rope_keys(c, rope),
    }
    return keys if c.get("indexer_types") is None else keys | {"attention.indexer.types": flags(_indexers(c))}


def _sizes(c: Config) -> Sizes:
    return {**latent_sizes(c), **indexer_sizes(c)}


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *LATENT_QUERIES,
        *LATENT_ATTENTION,
        *indexer_tensors("indexer"),
        *dense_feed_forward(),
        *BIASED_SHARED_EXPERTS,
    )


def _dense(c: Config, layer: int) -> bool:
    return layer < c.integer("first_k_dense_replace")


GLM_DSA = Family(
    name="glm-dsa",
    classes=("GlmMoeDsaForCausalLM",),
    architecture="glm-dsa",
    expert_counts=("n_routed_experts", "num_local_experts"),
    router=("gate.weight", "gate.e_score_correction_bias"),
    interleaved_rope=True,
    remark="GLM-5; MTP layers are dropped with a note; compared where the indexer lets every token through",
    vllm=False,
    conversion=Conversion(
        config_class="GlmMoeDsaConfig",
        defaults={
            "num_experts_per_tok": 8,
            "max_position_embeddings": 202752,
            "intermediate_size": 12288,
            "moe_intermediate_size": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "n_shared_experts": 1,
            "q_lora_rank": 2048,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
            "index_topk": 2048,
            "index_head_dim": 128,
            "index_n_heads": 32,
            "first_k_dense_replace": 3,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "scoring_func": (None, "sigmoid"),
            "topk_method": (None, "noaux_tc"),
            "moe_layer_freq": (None, 1),
        },
        renormalises="norm_topk_prob",
        keys=(
            *DECODER_KEYS,
            Key("attention.kv_lora_rank", "kv_lora_rank"),
            Key("attention.q_lora_rank", "q_lora_rank"),
            Key("attention.value_length_mla", "v_head_dim"),
            *INDEXER_KEYS,
            *GROUPED_EXPERTS,
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=_dense,
        special_tokens=GLM_TOKENS,
        layer_sets={"indexer": lambda c, layer: _indexers(c)[layer]},
        prediction=Prediction("num_nextn_predict_layers", ("eh_proj.weight", "enorm.weight", "hnorm.weight")),
        ignored=frozenset(
            (
                *("num_key_value_heads", "qk_head_dim", "num_mtp_layers", "mlp_layer_types", "layer_types", "mlp_bias"),
                *("indexer_rope_interleave", "index_topk_freq", "index_skip_topk_offset", "index_topk_pattern"),
            )
        ),
    ),
)
