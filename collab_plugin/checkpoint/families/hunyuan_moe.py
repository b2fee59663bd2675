"""Hunyuan-A13B: softmax router renormalised, one shared expert, queries and keys normalised behind the rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, head_length
from collab_plugin.checkpoint.families.family import Conversion, Family
from collab_plugin.checkpoint.families.gguf_keys import (
    GROUPED_KEYS,
    Key,
    expert_keys,
    f32,
    head_keys,
    rope_keys,
    rope_parameters,
    text,
    u32,
)
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_ALPHA, _CONTEXT = 1000, 2**18  # of the published models, whose config.json tells a shorter context


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """One value where config.json has one for each layer and all of them are the same; as many heads of keys as of
    queries where it tells no number."""
    keys = ("moe_topk", "moe_intermediate_size", "num_shared_expert", "num_experts")
    lists = {key: config[key] for key in keys if isinstance(config.get(key), list)}
    found = {key: values[0] for key, values in lists.items() if values and values.count(values[0]) == len(values)}
    told = config.get("num_key_value_heads") is not None
    return found if told else {**found, "num_key_value_heads": config.get("num_attention_heads")}


def _keys(c: Config) -> dict[str, MetaValue]:
    width = c.get("moe_intermediate_size")
    if width not in (None, c.get("intermediate_size")):
        raise CollabError(f"{c.where} has moe_intermediate_size = {str(width)[:40]}; llama.cpp has intermediate_size")
    keys, rope = head_keys(head_length(c)), rope_parameters(c)
    if (rope.get("rope_type") or rope.get("type")) != "dynamic":
        return keys | rope_keys(c)
    if rope.get("alpha") != _ALPHA:
        raise CollabError(f"{c.where} scales rope by alpha = {str(rope.get('alpha'))[:40]}; {_ALPHA} is read here")
    scaled = rope.number("rope_theta") * _ALPHA ** (head_length(c) / (head_length(c) - 2))
    return {
        **keys,
        "context_length": u32(_CONTEXT),
        "rope.freq_base": f32(scaled),
        "rope.scaling.type": text("none"),
        "rope.scaling.factor": f32(1),
        "rope.scaling.original_context_length": u32(_CONTEXT),
    }


def _sizes(c: Config) -> Sizes:
    return decoder_sizes(c, experts="num_experts", expert_width="intermediate_size")


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *GROUPED_QUERY,
        block_tensor("self_attn.query_layernorm.weight", "attn_q_norm.weight", "head"),
        block_tensor("self_attn.key_layernorm.weight", "attn_k_norm.weight", "head"),
        router_weights("mlp.gate.wg.weight"),
        *gated_experts(),
        *dense_feed_forward("mlp.shared_mlp", "_shexp", "expert_width", "experts"),
    )


HUNYUAN_MOE = Family(
    name="hunyuan-moe",
    classes=("HunYuanMoEV1ForCausalLM",),
    architecture="hunyuan-moe",
    expert_counts=("num_experts", "num_local_experts"),
    router=("gate.wg.weight",),
    remark="the published tokenizer is code of the folder and refused: save it as tokenizer.json",
    vllm=False,
    conversion=Conversion(
        config_class="HunYuanMoEV1Config",
        defaults={
            "num_key_value_heads": None,
            "moe_topk": 1,
            "max_position_embeddings": 2048,
            "intermediate_size": 11008,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            # Not transformers' keys: its class computes just this.
            "num_shared_expert": 1,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "num_shared_expert": (1,),
            "use_qk_norm": (None, True),
            "use_cla": (None, False),
            "mlp_bias": (None, False),
        },
        keys=(
            *(key for key in GROUPED_KEYS if key.gguf != "expert_used_count"),
            Key("expert_used_count", "moe_topk"),
            *expert_keys("num_experts", "intermediate_size"),
            Key("expert_shared_feed_forward_length", "intermediate_size"),
            Key("expert_shared_count", "num_shared_expert"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        settled=_settled,
        ignored=frozenset(("attention_head_dim", "eod_token_id", "sep_token_id", "use_mixed_mlp_moe", "norm_type")),
    ),
)
