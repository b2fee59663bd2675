"""llama-quantize's mixtures: the type that each of its presets gives each tensor of a model with experts.

The rules are those of llama_tensor_get_type_impl (llama-quant.cpp:437-692 of the llama.cpp that the adapter installs);
`tests/planning/test_presets.py` holds this table to the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from collab_plugin.checkpoint.checkpoint import Checkpoint, quantizable
from collab_plugin.formats.ggml_types import fallback

PRESETS: Mapping[str, str] = {
    **{kind: kind for kind in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS")},
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "Q2_K_S": "Q2_K",
    "Q2_K": "Q2_K",
    "IQ3_XXS": "IQ3_XXS",
    "IQ3_XS": "IQ3_S",
    "Q3_K_S": "Q3_K",
    "IQ3_S": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "IQ4_XS": "IQ4_XS",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "Q8_0": "Q8_0",
}
"""Type that a preset starts from (llama_ftype_get_default_type), by preset."""

_ONE_BIT = ("IQ1_S", "IQ1_M")
_TWO_BIT = ("IQ2_S", "IQ2_M")
_LOW = (*_ONE_BIT, "IQ2_XXS", "IQ2_XS", *_TWO_BIT)
_VALUES = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")
EIGHT = 8
"""Experts of the first Mixtral, for which the program has rules of its own."""


@dataclass(frozen=True)
class _Model:
    """What the rules ask of a model. ``gqa``: query heads a key head. ``values``: tensors that `_value` rules.
    ``tied``: the embedding is the output, too."""

    architecture: str
    layers: int
    experts: int
    gqa: int
    values: int
    tied: bool
    imatrix: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, imatrix: bool) -> _Model:
        heads = _first(checkpoint, "attention.head_count", 1)
        key_heads = _first(checkpoint, "attention.head_count_kv", heads)
        return cls(
            checkpoint.architecture,
            _first(checkpoint, "block_count", 0),
            _first(checkpoint, "expert_count", 0),
            heads // key_heads if key_heads else 0,
            sum(any(part in name for part in _VALUES) for name in checkpoint.tensors),
            "output.weight" not in checkpoint.tensors,
            imatrix,
        )

    def early(self, layer: int, share: int) -> bool:
        """In the first 1 / ``share`` of the layers."""
        return layer < self.layers // share


def _more_bits(at: int, count: int) -> bool:
    """use_more_bits: the first and the last eighth of ``count``, and every third between."""
    eighth = count // 8
    return at < eighth or at >= 7 * count // 8 or (at - eighth) % 3 == 2


def _first(checkpoint: Checkpoint, key: str, default: int) -> int:
    """An integer of the metadata, of the first layer where there is one a layer."""
    found = checkpoint.metadata.get(f"{checkpoint.architecture}.{key}")
    value: Any = default if found is None else found.value
    return int(value[0] if isinstance(value, list) else value)


def preset_types(checkpoint: Checkpoint, preset: str, *, imatrix: bool) -> dict[str, str]:
    """Type by tensor, of those that llama-quantize may change; ``imatrix``: it is given one.

    Types that it demands an importance vector for stand also where a tensor has none.
    """
    model = _Model.of(checkpoint, imatrix)
    seen = {"value": 0, "down": 0}
    found: dict[str, str] = {}
    for name, info in sorted(checkpoint.tensors.items(), key=lambda item: (_layer(item[1].layer), item[0])):
        if not quantizable(info):
            continue
        kind = _type(model, preset, name, info.layer or 0, seen, info.shape[-1])
        found[name] = fallback(kind, info.shape[-1])
    return {name: found[name] for name in checkpoint.tensors if name in found}


def _layer(layer: int | None) -> int:
    return -1 if layer is None else layer


def _type(model: _Model, preset: str, name: str, layer: int, seen: dict[str, int], width: int) -> str:
    """``seen``: tensors of a kind that came before in the program's order, which some rules count."""
    default = PRESETS[preset]
    if model.architecture == "glm5-next" and any(k in name for k in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
        return "Q8_0"
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        return _output(preset, default, width)
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return _embedding(preset, default)
    for part, (kind, rule) in _RULES.items():
        if part in name:
            at = seen.get(kind, 0)
            seen[kind] = at + 1
            low = preset in _LOW and kind == "down"
            return rule(model, preset, default, at if low or kind == "value" else layer)
    return default


def _output(preset: str, default: str, width: int) -> str:
    if fallback(default, width) != default or default == "Q8_0":
        return "Q8_0"
    return "Q5_K" if preset in (*_LOW, "IQ3_XXS") else "Q6_K"


def _embedding(preset: str, default: str) -> str:
    if preset in (*_ONE_BIT, "IQ2_XXS", "IQ2_XS"):
        return "Q2_K"
    return "IQ3_S" if preset in (*_TWO_BIT, "IQ3_XXS") else default


def _value(model: _Model, preset: str, default: str, at: int) -> str:
    """attn_v, attn_qkv, attn_kv_b; ``at``: how many there were before."""
    wide = model.gqa >= 4
    if preset in _LOW:
        return "Q4_K" if wide or model.experts >= 4 else "IQ3_S" if preset in _TWO_BIT else "Q2_K"
    if model.experts == EIGHT:
        return "Q8_0"
    found: dict[str, str] = {
        "Q2_K": "Q4_K" if wide else "Q3_K",
        "IQ3_XXS": "Q4_K" if wide else "IQ3_XXS" if model.imatrix else "IQ3_S",
        "IQ3_M": "Q4_K",
        "Q3_K_M": "Q5_K" if at < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
    }
    if wide:
        found |= {"Q2_K_S": "Q4_K", "IQ3_XS": "Q4_K", "IQ3_S": "Q4_K", "IQ4_XS": "Q5_K"}
    if at < 4:
        found["Q4_K_S"] = "Q5_K"
    if _more_bits(at, model.values):
        found |= {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"}
    return found.get(preset, default)


def _query_or_key(model: _Model, preset: str, default: str, layer: int) -> str:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(preset, default)


def _key(model: _Model, preset: str, default: str, layer: int) -> str:
    if model.experts == EIGHT:
        return "Q4_K" if preset in _LOW else "Q8_0"
    return _query_or_key(model, preset, default, layer)


def _attention_output(model: _Model, preset: str, default: str, layer: int) -> str:
    if model.experts == EIGHT:
        fives = (*_LOW, "Q2_K", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M")
        return "Q5_K" if preset in fives else default
    rules = {
        **dict.fromkeys(_ONE_BIT, "IQ2_XXS"),
        **dict.fromkeys(_TWO_BIT, "IQ3_S"),
        "Q2_K": "Q3_K",
        "IQ3_XXS": "IQ3_S",
        "IQ3_M": "Q4_K",
        "Q3_K_M": "Q4_K",
        "Q3_K_L": "Q5_K",
    }
    return rules.get(preset, default)


def _down(model: _Model, preset: str, default: str, at: int) -> str:
    """``at``: the layer, or, for presets of one and two bits, how many there were before."""
    if preset in _LOW:
        return ("IQ3_S" if preset in _TWO_BIT else "Q2_K") if model.early(at, 8) else default
    eighth, more = model.early(at, 8), _more_bits(at, model.layers)
    rules = {
        "Q2_K": "Q3_K",
        "Q2_K_S": "Q4_K" if eighth else default,
        "IQ3_XXS": default if model.imatrix else "Q4_K" if eighth else "Q3_K",
        "Q3_K_M": "Q5_K" if model.early(at, 16) else "Q4_K",
        "IQ3_M": "Q4_K" if eighth or (model.experts == EIGHT and more) else default,
        "Q3_K_L": "Q5_K",
        "IQ4_XS": default if model.imatrix or not eighth else "Q5_K",
        "Q4_K_S": "Q5_K" if eighth else default,
        "Q4_K_M": "Q6_K" if more else default,
        "Q5_K_M": "Q6_K" if more else default,
    }
    return rules.get(preset, default)


def _gate_or_up(model: _Model, preset: str, default: str, layer: int) -> str:
    middle = model.layers // 8 <= layer < 7 * model.layers // 8
    return "IQ3_XXS" if preset == "IQ3_XS" and middle else default


_Rule = Callable[[_Model, str, str, int], str]
_RULES: Mapping[str, tuple[str, _Rule]] = {
    **dict.fromkeys(_VALUES, ("value", _value)),
    "attn_k.weight": ("key", _key),
    "attn_q.weight": ("query", _query_or_key),
    "attn_output.weight": ("attention output", _attention_output),
    "ffn_up": ("up", _gate_or_up),
    "ffn_gate": ("gate", _gate_or_up),
    "ffn_down": ("down", _down),
}
