"""GGUF keys of a decoder, made of config.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from gguf import ExpertGatingFuncType, GGUFValueType

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def u32(value: int) -> MetaValue:
    return MetaValue(value, GGUFValueType.UINT32)


def f32(value: float) -> MetaValue:
    # As a GGUF gives it back, so that a folder and its GGUF have equal metadata.
    return MetaValue(float(np.float32(value)), GGUFValueType.FLOAT32)


def text(value: str) -> MetaValue:
    return MetaValue(value, GGUFValueType.STRING)


def flag(value: bool) -> MetaValue:
    return MetaValue(value, GGUFValueType.BOOL)


def integers(values: Iterable[int]) -> MetaValue:
    """One whole number for each layer, as llama.cpp's converter writes them."""
    return MetaValue(list(values), GGUFValueType.ARRAY, GGUFValueType.INT32)


def flags(values: Iterable[bool]) -> MetaValue:
    return MetaValue(list(values), GGUFValueType.ARRAY, GGUFValueType.BOOL)


@dataclass(frozen=True)
class Key:
    """``gguf``: a key without the architecture's prefix; ``config``: the key of config.json that gives its value, or
    the value itself where it is the same for the whole family.

    ``kind``: `int` writes a whole number of 32 bits, `float` a float32. ``optional``: not written where config.json
    has null, or has left it out and transformers has no default.
    """

    gguf: str
    config: str | int
    kind: type[int] | type[float] = int
    optional: bool = False

    def value(self, config: Config) -> MetaValue | None:
        if isinstance(self.config, int):
            return u32(self.config)
        if self.optional and config.get(self.config) is None:
            return None
        return u32(config.integer(self.config)) if self.kind is int else f32(config.number(self.config))


DECODER_KEYS = (
    Key("block_count", "num_hidden_layers"),
    Key("context_length", "max_position_embeddings"),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size", optional=True),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", float),
    Key("vocab_size", "vocab_size"),
    Key("expert_used_count", "num_experts_per_tok"),
)
"""What every decoder with experts has, as llama.cpp's converter writes it (conversion/base.py:1434-1560)."""

GROUPED_KEYS = (*DECODER_KEYS, Key("attention.head_count_kv", "num_key_value_heads"))
"""The same of one whose queries share keys and values."""

SIGMOID = Key("expert_gating_func", int(ExpertGatingFuncType.SIGMOID))
"""The router's scores."""


def expert_keys(count: str = "num_experts", width: str = "moe_intermediate_size") -> tuple[Key, ...]:
    """Number and width of the experts, by their keys of config.json."""
    return (Key("expert_count", count), Key("expert_feed_forward_length", width))


GROUPED_EXPERTS = (
    *(Key("leading_dense_block_count", "first_k_dense_replace"), *expert_keys("n_routed_experts")),
    *(Key("expert_shared_count", "n_shared_experts"), Key("expert_group_count", "n_group")),
    *(Key("expert_group_used_count", "topk_group"), Key("expert_weights_scale", "routed_scaling_factor", float)),
    SIGMOID,
)
"""Experts as DeepSeek-V3 has them, and what was made after it: shared ones beside them, a sigmoid, groups."""


def head_keys(head: int, *more: str) -> dict[str, MetaValue]:
    """The length of a head, of keys and of values; ``more``: keys that have it too."""
    return dict.fromkeys(("attention.key_length", "attention.value_length", *more), u32(head))


_ROPE_KEYS = frozenset(
    (
        *("rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "partial_rotary_factor", "truncate"),
    )
)


def rope_keys(c: Config, head: int | None = None, layers: str | None = None) -> dict[str, MetaValue]:
    """Rotary base and scaling; CollabError for a scaling that is not none, linear or yarn, or has unknown options.

    ``head``: length of a head of which a part may be rotated (partial_rotary_factor): with it the key of the rotated
    length is written, without it a part is refused. ``layers``: as in `rope_parameters`.
    """
    rope = rope_parameters(c, layers)
    parts = (rope.get("partial_rotary_factor"), c.get("partial_rotary_factor"))
    factor = next((part for part in parts if part is not None), 1.0)
    keys = {"rope.freq_base": f32(rope.number("rope_theta"))}
    if head is not None:
        keys["rope.dimension_count"] = u32(int(head * factor))
    elif factor != 1:
        raise CollabError(f"{c.where} rotates a part of each head (partial_rotary_factor), which is not read here")
    return keys | scaling_keys(c, rope)


def rope_parameters(c: Config, layers: str | None = None) -> Config:
    """The rotary embedding's own keys; ``layers``: of layers of this kind where config.json tells them apart."""
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if layers is not None and isinstance(rope, dict):
        rope = rope.get(layers, rope)
    if not isinstance(rope, dict):
        raise CollabError(f"{c.where} has a rope_scaling that is no object")
    return Config(rope, f"{c.where} rope_scaling", {"rope_theta": c.get("rope_theta")})


def rope_sections(c: Config, usual: list[int]) -> dict[str, MetaValue]:
    """Parts of a rotary embedding that turn by place and time in models that see pictures, ``usual`` ones where
    config.json has none."""
    sections = rope_parameters(c).get("mrope_section") or usual
    if not isinstance(sections, list) or len(sections) > 4 or not all(type(n) is int for n in sections):
        raise CollabError(f"{c.where} has mrope_section {str(sections)[:40]}, no list of up to four numbers")
    return {"rope.dimension_sections": integers([*sections, 0, 0, 0, 0][:4])}


def scaling_keys(c: Config, r: Config) -> dict[str, MetaValue]:
    """How the rotary embedding is scaled by its own keys ``r``; CollabError for ways that are not read."""
    kind = r.get("rope_type") or r.get("type") or "default"
    if kind == "default":
        return {}
    if kind not in ("linear", "yarn"):
        raise CollabError(f"{c.where} scales rope by {str(kind)[:40]!r}; none, linear and yarn are supported")
    if unknown := sorted(set(r.values) - _ROPE_KEYS):
        raise CollabError(f"{c.where} scales rope with {unknown[0]!r}, which is not read here")
    keys = {"rope.scaling.type": text(kind), "rope.scaling.factor": f32(r.number("factor"))}
    return keys | _yarn_keys(c, r) if kind == "yarn" else keys


def _yarn_keys(c: Config, r: Config) -> dict[str, MetaValue]:
    # transformers takes the model's own context where the original one is left out.
    contexts = (r.get("original_max_position_embeddings"), c.get("original_max_position_embeddings"))
    original = next((n for n in contexts if n is not None), c.get("max_position_embeddings"))
    whole = Config({"original_max_position_embeddings": original}, r.where)
    keys = {"rope.scaling.original_context_length": u32(whole.integer("original_max_position_embeddings"))}
    for name in ("beta_fast", "beta_slow"):
        if r.get(name) is not None:
            keys[f"rope.scaling.yarn_{name}"] = f32(r.number(name))
    mscale, all_dim = r.get("mscale"), r.get("mscale_all_dim")
    if mscale is not None and mscale != all_dim:
        raise CollabError(f"{c.where} has mscale {mscale} and mscale_all_dim {all_dim}: they must be equal")
    if all_dim is not None:  # legacy factor of 0.1: conversion/deepseek.py:384
        keys["rope.scaling.yarn_log_multiplier"] = f32(0.1 * r.number("mscale_all_dim"))
    return keys
