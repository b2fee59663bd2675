"""Gemma-4 26B-A4B: experts beside a dense feed-forward, each expert with a scale, other heads in layers without a
window."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from collab_plugin.checkpoint.checkpoint import F32
from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Family, PassedOver
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
from collab_plugin.checkpoint.families.layer_kinds import windows
from collab_plugin.checkpoint.families.tensors import (
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    fused_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_WINDOWS = 5  # layers with a window to one without, where layer_types does not say so
_NEVER = 1e30  # a divisor of the angles of channels that are not rotated, as llama.cpp's converter has it


def _windows(c: Config) -> list[bool]:
    return windows(c, _WINDOWS + 1)


def _of_full_layers(c: Config, key: str, older: str, otherwise: int) -> int:
    """A size of the layers without a window: transformers 5 has it by layer, config.json of the hub in a key."""
    by_layer = c.get("per_layer_config")
    if isinstance(by_layer, dict):
        told = [own[key] for own in by_layer.values() if isinstance(own, dict) and key in own]
        if told:
            return Config({key: told[0]}, c.where).integer(key)
    return otherwise if c.get(older) is None else c.integer(older)


def _head(c: Config) -> int:
    return _of_full_layers(c, "head_dim", "global_head_dim", 512)


def _kv_heads(c: Config) -> int:
    own = c.integer("num_key_value_heads")
    return _of_full_layers(c, "num_key_value_heads", "num_global_key_value_heads", own)


def _keys(c: Config) -> dict[str, MetaValue]:
    windows, window = _windows(c), c.integer("head_dim")
    full, small = rope_parameters(c, "full_attention"), rope_parameters(c, "sliding_attention")
    if full.get("rope_type") not in ("proportional", None) or small.get("rope_type") not in ("default", None):
        raise CollabError(f"{c.where} scales rope in a way that llama.cpp's gemma4 does not")
    heads = (_kv_heads(c), c.integer("num_key_value_heads"))
    part = small.get("partial_rotary_factor")
    keys = {
        "attention.head_count_kv": integers(heads[windowed] for windowed in windows),
        "attention.sliding_window_pattern": flags(windows),
        "attention.shared_kv_layers": u32(0),
        "embedding_length_per_layer_input": u32(0),
        **head_keys(_head(c), "rope.dimension_count"),
        "attention.key_length_swa": u32(window),
        "attention.value_length_swa": u32(window),
        "rope.dimension_count_swa": u32(int(window * (1.0 if part is None else part))),
        "rope.freq_base": f32(full.number("rope_theta")),
        "rope.freq_base_swa": f32(small.number("rope_theta")),
    }
    if c.get("final_logit_softcapping"):
        keys["final_logit_softcapping"] = f32(c.number("final_logit_softcapping"))
    return keys


def _rotated_part(c: Config) -> Mapping[str, F32]:
    """Divisors of angles in layers without a window: the first channels are rotated, the others are not."""
    half, full = _head(c) // 2, rope_parameters(c, "full_attention")
    rotated = int(_head(c) * full.number("partial_rotary_factor") / 2)
    return {"rope_freqs.weight": np.where(np.arange(half) < rotated, 1.0, _NEVER).astype(np.float32)}


def _sizes(c: Config) -> Sizes:
    widths = {"width": "intermediate_size", "expert_width": "moe_intermediate_size"}
    own = {"window_heads": "num_key_value_heads", "window_head": "head_dim"}
    return decoder_sizes(c, experts="num_experts", full_heads=_kv_heads(c), full_head=_head(c), **widths, **own)


def _attention(kind: str) -> tuple[TensorRule, ...]:
    head, keys = f"{kind}_head", f"{kind}_heads*{kind}_head"
    return (
        block_tensor("self_attn.q_proj.weight", "attn_q.weight", f"heads*{head} hidden", layers=kind),
        block_tensor("self_attn.k_proj.weight", "attn_k.weight", f"{keys} hidden", layers=kind),
        block_tensor(
            "self_attn.v_proj.weight", "attn_v.weight", f"{keys} hidden", layers=kind, optional=kind == "full"
        ),
        block_tensor("self_attn.o_proj.weight", "attn_output.weight", f"hidden heads*{head}", layers=kind),
        block_tensor("self_attn.q_norm.weight", "attn_q_norm.weight", head, layers=kind),
        block_tensor("self_attn.k_norm.weight", "attn_k_norm.weight", head, layers=kind),
    )


_NORMS = tuple(
    block_tensor(f"{stored}.weight", f"{gguf}.weight", "hidden")
    for stored, gguf in (
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        ("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        ("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    )
)
_EXPERTS = (
    router_weights("router.proj.weight"),
    block_tensor("router.scale", "ffn_gate_inp.scale", "hidden"),
    block_tensor("router.per_expert_scale", "ffn_down_exps.scale", "experts"),
    block_tensor("experts.gate_up_proj", "ffn_gate_up_exps.weight", "experts 2*expert_width hidden", fused_experts()),
    block_tensor("experts.down_proj", "ffn_down_exps.weight", "experts hidden expert_width", fused_experts()),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *_NORMS,
        block_tensor("layer_scalar", "layer_output_scale.weight", "1"),
        *_attention("window"),
        *_attention("full"),
        *dense_feed_forward(layers="all"),
        *_EXPERTS,
    )


GEMMA4 = Family(
    name="gemma4",
    classes=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"),
    architecture="gemma4",
    expert_counts=("num_experts",),
    blocks=("router", "experts"),
    router=("proj.weight", "per_expert_scale"),
    remark="gate and up stay in one tensor",
    vllm=False,
    conversion=Conversion(
        config_class="Gemma4TextConfig",
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "intermediate_size": 9216,
            "rms_norm_eps": 1e-6,
            "sliding_window": 512,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size_per_layer_input": 256,
            "num_kv_shared_layers": 0,
            "enable_moe_block": False,
            "use_double_wide_mlp": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
        fixed={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "hidden_size_per_layer_input": (0, None),
            "num_kv_shared_layers": (0,),
            "enable_moe_block": (True,),
            "use_double_wide_mlp": (False,),
            "attention_bias": (False,),
            "use_bidirectional_attention": (None, "vision"),
        },
        keys=(
            *(key for key in DECODER_KEYS if key.gguf != "expert_used_count"),
            Key("expert_used_count", "top_k_experts"),
            Key("attention.sliding_window", "sliding_window"),
            *expert_keys(),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        constants=_rotated_part,
        layer_sets={"full": lambda c, layer: not _windows(c)[layer], "window": lambda c, layer: _windows(c)[layer]},
        marked_spaces=True,
        nested="text_config",
        renames=(("model.language_model.", "model."),),
        passed_over=(
            PassedOver("model.vision_tower.", "the vision tower", copied=True),
            PassedOver("model.embed_vision.", "the projector of pictures", copied=True),
        ),
        ignored=frozenset(
            (
                *("num_experts_per_tok", "attention_k_eq_v", "vocab_size_per_layer_input", "vision_config"),
                *("audio_config", "image_token_id", "boi_token_id", "eoi_token_id", "audio_token_id", "boa_token_id"),
                *("eoa_token_id", "video_token_id", "vision_soft_tokens_per_image"),
            )
        ),
    ),
)
