"""What one family of Hugging Face checkpoints needs to become GGUF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGUFValueType

from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


class Config:
    """config.json with checked access; a missing or ill-typed key is a CollabError."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            raise CollabError(f"{self.where} has {key} = {str(value)[:40]!r}, not a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise CollabError(f"{self.where} has {key} = {str(value)[:40]!r}, not a number")
        return float(value)

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value


@dataclass(frozen=True)
class Family:
    """``classes``: names in config.json's ``architectures``. ``keys(config)``: GGUF keys without prefix.

    ``expert_key`` names the expert count; ``mla`` splits kv_b_proj into heads; ``parts(config, dense)``
    lists the GGUF tensors that a block must have.
    """

    classes: tuple[str, ...]
    arch: MODEL_ARCH
    expert_key: str
    keys: Callable[[Config], dict[str, MetaValue]]
    parts: Callable[[Config, bool], list[str]]
    mla: bool = False

    def expert_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of config.json that hold the expert count: transformers 5 saves Qwen3-MoE's under another name."""
        found = tuple(key for key in (self.expert_key, "num_local_experts") if key in config)
        return found or (self.expert_key,)


NORMS = ("attn_norm.weight", "ffn_norm.weight")
EXPERTS = ("ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
DENSE = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")


def u32(value: int) -> MetaValue:
    return MetaValue(value, GGUFValueType.UINT32)


def f32(value: float) -> MetaValue:
    # As a GGUF gives it back, so that a folder and its GGUF have equal metadata.
    return MetaValue(float(np.float32(value)), GGUFValueType.FLOAT32)


def text(value: str) -> MetaValue:
    return MetaValue(value, GGUFValueType.STRING)


def flag(value: bool) -> MetaValue:
    return MetaValue(value, GGUFValueType.BOOL)


def common_keys(c: Config) -> dict[str, MetaValue]:
    """Keys of every decoder, as llama.cpp's converter writes them (conversion/base.py:1434-1560)."""
    keys = {
        "block_count": u32(c.integer("num_hidden_layers")),
        "context_length": u32(c.integer("max_position_embeddings")),
        "embedding_length": u32(c.integer("hidden_size")),
        "feed_forward_length": u32(c.integer("intermediate_size")),
        "attention.head_count": u32(c.integer("num_attention_heads")),
        "attention.layer_norm_rms_epsilon": f32(c.number("rms_norm_eps", 1e-6)),
        "vocab_size": u32(c.integer("vocab_size")),
        "expert_used_count": u32(c.integer("num_experts_per_tok")),
        "expert_feed_forward_length": u32(c.integer("moe_intermediate_size")),
    }
    return keys | rope_keys(c)


def rope_keys(c: Config) -> dict[str, MetaValue]:
    """Rotary base and scaling; CollabError for a scaling that is not none, linear or yarn."""
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CollabError(f"{c.where} has a rope_scaling that is no object")
    r = Config(rope, f"{c.where} rope_scaling")
    keys = {"rope.freq_base": f32(r.number("rope_theta", c.number("rope_theta", 10000.0)))}
    kind = r.get("rope_type", r.get("type", "default"))
    if kind == "default":
        return keys
    if kind not in ("linear", "yarn"):
        raise CollabError(f"{c.where} scales rope by {kind!r}; none, linear and yarn are supported")
    keys |= {"rope.scaling.type": text(kind), "rope.scaling.factor": f32(r.number("factor"))}
    if kind == "yarn":
        original = r.integer("original_max_position_embeddings", c.get("original_max_position_embeddings"))
        keys["rope.scaling.original_context_length"] = u32(original)
        for name, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if r.get(name) is not None:
                keys[f"rope.scaling.{key}"] = f32(r.number(name))
        if r.get("mscale_all_dim") is not None:  # legacy factor of 0.1: conversion/deepseek.py:384
            keys["rope.scaling.yarn_log_multiplier"] = f32(0.1 * r.number("mscale_all_dim"))
    return keys
