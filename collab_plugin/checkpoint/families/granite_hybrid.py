"""Granite 4 H: Granite's experts in every layer, behind Mamba-2 or attention without a rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, even_head
from collab_plugin.checkpoint.families.family import Family
from collab_plugin.checkpoint.families.gguf_keys import Key, f32, flag, integers, rope_parameters, u32
from collab_plugin.checkpoint.families.granite_moe import EXPERTS_AND_SHARED, GRANITE_MOE
from collab_plugin.checkpoint.families.nemotron_h import mamba_2, mamba_sizes
from collab_plugin.checkpoint.families.tensors import BLOCK_NORMS, OUTSIDE_BLOCKS, PAIRED_QUERY, Sizes, TensorRule
from collab_plugin.formats.gguf_values import MetaValue

_GRANITE = GRANITE_MOE.conversion
assert _GRANITE is not None
_KINDS = {"mamba": "linear_attention", "attention": "full_attention"}


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Kinds of layers by transformers 5's names; sizes that follow from others."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    found: dict[str, Any] = {}
    if isinstance(kinds, list):
        found["layer_types"] = [_KINDS.get(str(kind), kind) for kind in kinds]
    width, heads = config.get("hidden_size"), config.get("mamba_n_heads", 128)
    if config.get("mamba_d_head", "auto") == "auto" and isinstance(width, int) and isinstance(heads, int) and heads:
        found["mamba_d_head"] = config.get("mamba_expand", 2) * width // heads
    if config.get("num_key_value_heads") is None:
        found["num_key_value_heads"] = config.get("num_attention_heads")
    return found


def _attention(c: Config) -> list[bool]:
    told = c.kinds("layer_types", tuple(_KINDS.values()))
    return [kind == "full_attention" for kind in told or ["linear_attention"] * c.integer("num_hidden_layers")]


def _keys(c: Config) -> dict[str, MetaValue]:
    heads = c.integer("num_key_value_heads")
    return {
        "attention.head_count_kv": integers(heads if here else 0 for here in _attention(c)),
        "ssm.inner_size": u32(c.integer("mamba_n_heads") * c.integer("mamba_d_head")),
        "rope.dimension_count": u32(even_head(c)),  # as the converter writes it; nothing is rotated
        "rope.scaling.finetuned": flag(False),
        "rope.freq_base": f32(rope_parameters(c).number("rope_theta")),
    }


def _sizes(c: Config) -> Sizes:
    mamba = (c.integer(key) for key in ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state"))
    widths = {"expert_width": "intermediate_size", "shared_width": "shared_intermediate_size", "kernel": "mamba_d_conv"}
    return decoder_sizes(c, head=even_head(c), experts="num_local_experts", **widths, **mamba_sizes(*mamba))


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    attention = (replace(rule, layers="attention") for rule in PAIRED_QUERY)
    return (*OUTSIDE_BLOCKS, *BLOCK_NORMS, *mamba_2("mamba"), *attention, *EXPERTS_AND_SHARED)


GRANITE_HYBRID = Family(
    name="granite-hybrid",
    classes=("GraniteMoeHybridForCausalLM",),
    architecture="granitehybrid",
    expert_counts=("num_local_experts",),
    blocks=GRANITE_MOE.blocks,
    router=GRANITE_MOE.router,
    remark="Granite 4 H",
    vllm=False,
    conversion=replace(
        _GRANITE,
        config_class="GraniteMoeHybridConfig",
        defaults={
            **_GRANITE.defaults,
            "shared_intermediate_size": 1024,
            "position_embedding_type": None,
            "mamba_n_heads": 128,
            "mamba_n_groups": 1,
            "mamba_d_state": 256,
            "mamba_d_conv": 4,
            "mamba_proj_bias": False,
        },
        fixed={
            **_GRANITE.fixed,
            "position_embedding_type": (None, "nope"),
            "mamba_proj_bias": (False,),
            "mamba_n_groups": (1,),  # with more llama.cpp normalises each by itself, and transformers all together
        },
        keys=(
            *_GRANITE.keys,
            Key("expert_shared_feed_forward_length", "shared_intermediate_size"),
            Key("ssm.conv_kernel", "mamba_d_conv"),
            Key("ssm.state_size", "mamba_d_state"),
            Key("ssm.group_count", "mamba_n_groups"),
            Key("ssm.time_step_rank", "mamba_n_heads"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        settled=_settled,
        layer_sets={
            "mamba": lambda c, layer: not _attention(c)[layer],
            "attention": lambda c, layer: _attention(c)[layer],
        },
        ignored=frozenset(
            (
                *("mamba_d_head", "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "time_step_limit"),
                *("layers_block_type", "normalization_function", "init_method", "time_step_min", "time_step_max"),
            )
        ),
    ),
)
