"""MiniMax-M2: sigmoid router with bias, experts called w1, w3 and w2, norms over all heads of queries and keys."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import (
    GROUPED_KEYS,
    SIGMOID,
    expert_keys,
    head_keys,
    rope_keys,
    rope_parameters,
    u32,
)
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    WIDE_QUERY_KEY_NORMS,
    Sizes,
    TensorRule,
    block_tensor,
    gated_experts,
    router_weights,
)
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    head = c.integer("head_dim")
    keys = head_keys(head) | rope_keys(c, head)
    if c.get("rotary_dim") is not None and rope_parameters(c).get("partial_rotary_factor") is None:
        keys["rope.dimension_count"] = u32(c.integer("rotary_dim"))
    return keys


def _sizes(c: Config) -> Sizes:
    return decoder_sizes(c, head="head_dim", experts="num_local_experts", expert_width="intermediate_size")


_BLOCK = "block_sparse_moe"


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *GROUPED_QUERY,
        *WIDE_QUERY_KEY_NORMS,
        router_weights(f"{_BLOCK}.gate.weight"),
        router_weights(),
        block_tensor(f"{_BLOCK}.e_score_correction_bias", "exp_probs_b.bias", "experts", layers="experts"),
        block_tensor("mlp.e_score_correction_bias", "exp_probs_b.bias", "experts", layers="experts"),
        *gated_experts(f"{_BLOCK}.experts", ("w1", "w3", "w2")),
        *gated_experts(),
    )


MINIMAX_M2 = Family(
    name="minimax-m2",
    classes=("MiniMaxM2ForCausalLM",),
    architecture="minimax-m2",
    expert_counts=("num_local_experts",),
    blocks=(_BLOCK, "mlp"),
    router=("gate.weight", "e_score_correction_bias"),
    vllm=False,
    decoder=Decoder(),
    conversion=Conversion(
        config_class="MiniMaxM2Config",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 196608,
            "intermediate_size": 1536,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            # Not transformers' keys: its class computes just this.
            "scoring_func": "sigmoid",
            "use_qk_norm": True,
            "use_routing_bias": True,
        },
        fixed={
            "hidden_act": ("silu",),
            "scoring_func": ("sigmoid",),
            "use_qk_norm": (True,),
            "use_routing_bias": (True,),
            "tie_word_embeddings": (False,),
            "qk_norm_type": (None, "per_layer"),
            "shared_intermediate_size": (None, 0),
        },
        keys=(*GROUPED_KEYS, *expert_keys("num_local_experts", "intermediate_size"), SIGMOID),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        passed_over=(PassedOver("model.mtp.", "MTP layers"), PassedOver("mtp.", "MTP layers")),
        ignored=frozenset(
            ("rotary_dim", "use_mtp", "num_mtp_modules", "mtp_transformer_layers", "attn_type_list", "layer_types")
        ),
    ),
)
