"""Mellum 2: Qwen3-MoE's decoder with windows in some layers, which have a rotary base of their own."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Family
from collab_plugin.checkpoint.families.gguf_keys import Key, f32, head_keys, rope_keys, rope_parameters
from collab_plugin.checkpoint.families.layer_kinds import FULL, WINDOW, window_keys
from collab_plugin.checkpoint.families.qwen3moe import QWEN3_MOE
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_QWEN3 = QWEN3_MOE.conversion
assert _QWEN3 is not None


def _keys(c: Config) -> dict[str, MetaValue]:
    c.kinds("mlp_layer_types", ("sparse",))
    bases = [rope_parameters(c, kind).number("rope_theta") for kind in (FULL, WINDOW)]
    if bases[0] != bases[1] or rope_parameters(c, WINDOW).get("rope_type") not in (None, "default"):
        raise CollabError(f"{c.where} rotates layers with a window by another base, or scales it; llama.cpp does not")
    return {
        **head_keys(c.integer("head_dim")),
        **window_keys(c, every=1),  # none has one where config.json tells no kinds
        "rope.freq_base_swa": f32(bases[1]),
        **rope_keys(c, layers=FULL),
    }


MELLUM = Family(
    name="mellum",
    classes=("MellumForCausalLM",),
    architecture="mellum",
    expert_counts=("num_experts", "num_local_experts"),
    remark="Mellum 2; the published tokenizer splits off digits and is refused",
    vllm=False,
    conversion=replace(
        _QWEN3,
        config_class="MellumConfig",
        defaults={
            **{key: _QWEN3.defaults[key] for key in ("num_experts_per_tok", "rms_norm_eps", "hidden_act")},
            **{key: _QWEN3.defaults[key] for key in ("attention_bias", "tie_word_embeddings", "num_key_value_heads")},
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "intermediate_size": 7168,
            "moe_intermediate_size": 896,
            "norm_topk_prob": True,
            "sliding_window": 1024,
        },
        fixed={"hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (None, True)},
        keys=(*_QWEN3.keys, Key("attention.sliding_window", "sliding_window")),
        more_keys=_keys,
    ),
)
