"""K-EXAONE: DeepSeek-V3's experts; three layers of four attend within a window, and only they rotate."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, head_length
from collab_plugin.checkpoint.families.family import Conversion, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import (
    GROUPED_KEYS,
    SIGMOID,
    Key,
    expert_keys,
    head_keys,
    rope_keys,
    text,
    u32,
)
from collab_plugin.checkpoint.families.layer_kinds import behind_dense, leading_dense, window_keys
from collab_plugin.checkpoint.families.tensors import (
    BIASED_SHARED_EXPERTS,
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    QUERY_KEY_NORMS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
)
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    return {
        **head_keys(head_length(c)),
        **window_keys(c),
        "rope.scaling.type": text("none"),
        "leading_dense_block_count": u32(leading_dense(c)),
        "expert_shared_feed_forward_length": u32(c.integer("moe_intermediate_size") * c.integer("num_shared_experts")),
        **rope_keys(c),
    }


def _sizes(c: Config) -> Sizes:
    more = {"width": "intermediate_size", "shared": "num_shared_experts"}
    return decoder_sizes(c, experts="num_experts", expert_width="moe_intermediate_size", **more)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    # The bias as the published models name it, for which transformers has another name.
    published = block_tensor("mlp.e_score_correction_bias", "exp_probs_b.bias", "experts", layers="experts")
    rules = (*OUTSIDE_BLOCKS, *BLOCK_NORMS, *GROUPED_QUERY, *QUERY_KEY_NORMS, *dense_feed_forward(), published)
    return (*rules, *BIASED_SHARED_EXPERTS)


EXAONE_MOE = Family(
    name="exaone-moe",
    classes=("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"),
    architecture="exaone-moe",
    expert_counts=("num_experts", "num_local_experts"),
    router=("gate.weight", "gate.e_score_correction_bias", "e_score_correction_bias"),
    remark="MTP layers are dropped with a note",
    vllm=False,
    conversion=Conversion(
        config_class="ExaoneMoeConfig",
        defaults={
            "num_key_value_heads": 32,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 2048,
            "intermediate_size": 16384,
            "moe_intermediate_size": 1024,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "n_group": (1,),
            "topk_group": (1,),
            "sliding_window_pattern": (4, "LLLG"),
            "scoring_func": (None, "sigmoid"),
        },
        renormalises="norm_topk_prob",
        keys=(
            *GROUPED_KEYS,
            *expert_keys(),
            Key("attention.sliding_window", "sliding_window"),
            Key("nextn_predict_layers", 0),
            Key("expert_shared_count", "num_shared_experts"),
            Key("expert_group_count", "n_group"),
            Key("expert_group_used_count", "topk_group"),
            Key("expert_weights_scale", "routed_scaling_factor", float),
            SIGMOID,
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=behind_dense(),
        passed_over=(PassedOver("mtp.", "MTP layers"),),
        ignored=frozenset(
            (
                "num_nextn_predict_layers",
                "first_k_dense_replace",
                "first_last_k_dense_replace",
                "is_moe_layer",
                "layer_types",
            )
        ),
    ),
)
