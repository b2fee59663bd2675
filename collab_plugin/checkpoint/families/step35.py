"""Step-3.5 and 3.7: sigmoid router with bias, norms stored less one, a gate for each head, other heads in layers with a
window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import GGUFValueType

from collab_plugin.checkpoint.checkpoint import F32
from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Family, PassedOver, Prediction
from collab_plugin.checkpoint.families.gguf_keys import (
    DECODER_KEYS,
    Key,
    expert_keys,
    f32,
    flags,
    head_keys,
    integers,
    rope_parameters,
    u32,
)
from collab_plugin.checkpoint.families.layer_kinds import FULL, WINDOW, windows
from collab_plugin.checkpoint.families.tensors import (
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    fused_experts,
    plus_one,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_DENSE = 3  # first layers without experts, where config.json does not say it
_BY_LAYER = ("layer_types", "partial_rotary_factors", "rope_theta", "swiglu_limits", "swiglu_limits_shared")


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lists without their values for prediction layers, which the published ones have behind the others."""
    count, other = config.get("num_hidden_layers"), config.get("attention_other_setting")
    found = {key: config[key][:count] for key in _BY_LAYER if isinstance(config.get(key), list)}
    if isinstance(other, dict):
        names = {"num_attention_heads": "num_sliding_attention_heads", "num_attention_groups": "sliding_kv_heads"}
        found |= {own: other[key] for key, own in names.items() if key in other}
    told = config.get("moe_layers_enum")
    if isinstance(told, str) and all(part.strip().isdecimal() for part in told.split(",")):
        sparse = {int(part) for part in told.split(",")}
        found["mlp_layer_types"] = ["sparse" if n in sparse else "dense" for n in range(count or 0)]
    return found


def _windows(c: Config) -> list[bool]:
    return windows(c, every=1)  # none has one where config.json tells no kinds


def _dense(c: Config, layer: int) -> bool:
    kinds = c.kinds("mlp_layer_types", ("dense", "sparse"))
    return layer < _DENSE if kinds is None else kinds[layer] == "dense"


def _own(c: Config, key: str, otherwise: str) -> int:
    return c.integer(otherwise if c.get(key) is None else key)


def _rope(c: Config, kind: str) -> Config:
    """The rotary embedding of layers of one kind: told by kind, or by layer in the published models."""
    told = rope_parameters(c, kind)
    layers = [windowed == (kind == WINDOW) for windowed in _windows(c)]
    by_layer = {"rope_theta": c.get("rope_theta"), "partial_rotary_factor": c.get("partial_rotary_factors")}
    found = {
        key: values[layers.index(True)]
        for key, values in by_layer.items()
        if isinstance(values, list) and len(values) == len(layers) and True in layers
    }
    return Config(dict(told.values) | found, told.where, told.defaults)


def _keys(c: Config) -> dict[str, MetaValue]:
    windows = _windows(c)
    if not any(windows) or all(windows):
        raise CollabError(f"{c.where} has layers of one kind of attention only; llama.cpp's step35 has both")
    full, window = _rope(c, FULL), _rope(c, WINDOW)
    parts = (full.get("partial_rotary_factor"), window.get("partial_rotary_factor"))
    if parts[0] != 0.5 or parts[1] not in (None, 1):
        raise CollabError(f"{c.where} rotates {parts} of each head; llama.cpp's step35 half of it, and all in windows")
    heads = _own(c, "num_sliding_attention_heads", "num_attention_heads"), c.integer("num_attention_heads")
    kv_heads = _own(c, "sliding_kv_heads", "num_key_value_heads"), c.integer("num_key_value_heads")
    dense = next((n for n in range(len(windows)) if not _dense(c, n)), len(windows))
    limits = (("swiglu_clamp_exp", "swiglu_limits"), ("swiglu_clamp_shexp", "swiglu_limits_shared"))
    return {
        "attention.head_count": integers(heads[0] if windowed else heads[1] for windowed in windows),
        "attention.head_count_kv": integers(kv_heads[0] if windowed else kv_heads[1] for windowed in windows),
        "attention.sliding_window_pattern": flags(windows),
        **head_keys(c.integer("head_dim")),
        "rope.freq_base": f32(full.number("rope_theta")),
        "rope.freq_base_swa": f32(window.number("rope_theta")),
        "leading_dense_block_count": u32(dense),
        **{name: _limits(c, key) for name, key in limits if c.get(key) is not None},
    }


def _limits(c: Config, key: str) -> MetaValue:
    told = c.get(key)
    if not isinstance(told, list) or len(told) != c.integer("num_hidden_layers"):
        raise CollabError(f"{c.where} has {key} that are not one for each layer")
    return MetaValue([float(np.float32(n or 0)) for n in told], GGUFValueType.ARRAY, GGUFValueType.FLOAT32)


def _rotary_factors(c: Config) -> Mapping[str, F32]:
    """Divisors of angles by Llama 3's rule in layers without a window (conversion/step3.py)."""
    rope = _rope(c, FULL)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return {}
    if kind != "llama3":
        raise CollabError(f"{c.where} scales rope by {str(kind)[:40]!r}; none and llama3 are read here")
    head = c.integer("head_dim")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    turns = rope.number("original_max_position_embeddings") / (
        2 * np.pi * rope.number("rope_theta") ** (np.arange(0, head // 2, 2, dtype=np.float64) / (head // 2))
    )
    part = np.clip((turns - low) / (high - low), 0, 1)
    found = np.ones(head // 2, np.float32)
    found[: len(part)] = 1 / ((1 - part) / rope.number("factor") + part)
    return {"rope_freqs.weight": found}


def _sizes(c: Config) -> Sizes:
    widths = {"width": "intermediate_size", "expert_width": "moe_intermediate_size", "shared_width": "share_expert_dim"}
    return decoder_sizes(
        c,
        experts="n_routed_experts",
        full_heads="num_attention_heads",
        full_kv="num_key_value_heads",
        window_heads=_own(c, "num_sliding_attention_heads", "num_attention_heads"),
        window_kv=_own(c, "sliding_kv_heads", "num_key_value_heads"),
        **widths,
    )


def _attention(kind: str) -> tuple[TensorRule, ...]:
    heads, keys = f"{kind}_heads*head", f"{kind}_kv*head"
    return (
        block_tensor("self_attn.q_proj.weight", "attn_q.weight", f"{heads} hidden", layers=kind),
        block_tensor("self_attn.k_proj.weight", "attn_k.weight", f"{keys} hidden", layers=kind),
        block_tensor("self_attn.v_proj.weight", "attn_v.weight", f"{keys} hidden", layers=kind),
        block_tensor("self_attn.o_proj.weight", "attn_output.weight", f"hidden {heads}", layers=kind),
        block_tensor("self_attn.g_proj.weight", "attn_gate.weight", f"{kind}_heads hidden", layers=kind),
    )


def _expert(part: str, shape: str) -> TensorRule:
    stored, gguf = f"moe.{part}_proj.weight", f"ffn_{part}_exps.weight"
    return block_tensor(stored, gguf, f"experts {shape}", fused_experts(), "experts")


_EXPERTS = (
    _expert("gate", "expert_width hidden"),
    _expert("up", "expert_width hidden"),
    _expert("down", "hidden expert_width"),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS[::2],
        TensorRule("model.norm.weight", "output_norm.weight", "hidden", plus_one, "outside"),
        block_tensor("input_layernorm.weight", "attn_norm.weight", "hidden", plus_one),
        block_tensor("post_attention_layernorm.weight", "ffn_norm.weight", "hidden", plus_one),
        block_tensor("self_attn.q_norm.weight", "attn_q_norm.weight", "head", plus_one),
        block_tensor("self_attn.k_norm.weight", "attn_k_norm.weight", "head", plus_one),
        *_attention("full"),
        *_attention("window"),
        *dense_feed_forward(),
        router_weights("moe.gate.weight"),
        block_tensor("moe.router_bias", "exp_probs_b.bias", "experts", layers="experts"),
        *_EXPERTS,
        *dense_feed_forward("share_expert", "_shexp", "shared_width", "experts"),
    )


STEP35 = Family(
    name="step-3.5",
    classes=("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
    architecture="step35",
    expert_counts=("n_routed_experts", "moe_num_experts", "num_local_experts"),
    blocks=("moe",),
    router=("gate.weight", "router_bias"),
    remark="Step-3.5 and 3.7; MTP layers and the vision tower are dropped with a note",
    vllm=False,
    conversion=Conversion(
        config_class="Step3p7TextConfig",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 128000,
            "intermediate_size": 11264,
            "moe_intermediate_size": 1280,
            "share_expert_dim": 1280,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "moe_router_scaling_factor": 1.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            # Not transformers' keys: its class computes just this.
            "norm_expert_weight": True,
            "moe_every_n_layer": 1,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "tie_word_embeddings": (False,),
            "moe_every_n_layer": (1,),
            "use_head_wise_attn_gate": (None, True),
            "moe_router_activation": (None, "sigmoid"),
            "use_moe_router_bias": (None, True),
        },
        renormalises="norm_expert_weight",
        keys=(
            *(key for key in DECODER_KEYS if key.gguf != "attention.head_count"),
            Key("attention.sliding_window", "sliding_window"),
            *expert_keys("n_routed_experts"),
            Key("expert_shared_feed_forward_length", "share_expert_dim"),
            Key("expert_weights_scale", "moe_router_scaling_factor", float),
            Key("moe_every_n_layers", "moe_every_n_layer"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=_dense,
        constants=_rotary_factors,
        layer_sets={"full": lambda c, layer: not _windows(c)[layer], "window": lambda c, layer: _windows(c)[layer]},
        prediction=Prediction("num_nextn_predict_layers", ("eh_proj.weight", "enorm.weight", "hnorm.weight")),
        nested="text_config",
        aliases={
            "num_attention_groups": "num_key_value_heads",
            "moe_top_k": "num_experts_per_tok",
            "share_expert_dims": "share_expert_dim",
        },
        settled=_settled,
        passed_over=(
            PassedOver("vision_model.", "the vision tower", copied=True),
            PassedOver("vit_large_projector.", "what brings images to the decoder", copied=True),
        ),
        ignored=frozenset(
            (
                *("attention_other_setting", "moe_layers_enum", "partial_rotary_factors", "yarn_only_types", "sink"),
                *("per_layer_config", "query_pre_attn_scalar", "vision_config", "image_token_id", "projector_bias"),
                *("mtp_layer_types", "mtp_mlp_layer_types", "use_mfa", "use_moe", "zero_centered", "need_fp32_gate"),
                *("max_seq_len", "att_impl_type", "understand_projector_stride", "image_token_len", "patch_token_len"),
                *("im_start_token", "im_end_token", "im_patch_token", "layer_types", "mlp_layer_types", "gating"),
            )
        ),
    ),
)
