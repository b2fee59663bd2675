"""What running the artifact takes: weights, KV cache, compute buffer, reserve; what is exact and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import Role, layer_of, role_of
from collab_plugin.placement.artifact_shape import ArtifactShape
from collab_plugin.placement.run_setup import RunSetup

F16 = 2

Certainty = Literal["exact", "upper bound", "estimate", "chosen"]


@dataclass(frozen=True)
class MemoryPart:
    """One piece of the memory that running takes; ``bytes`` None: left out, ``how`` says why."""

    name: str
    bytes: int | None
    certainty: Certainty
    how: str


@dataclass(frozen=True)
class Memory:
    """``weights``: the parts of the file, adding up to it. ``runtime``: all else.

    ``total``: of what is known. ``complete``: nothing was left out.
    """

    setup: RunSetup
    kv_bytes_per_token: int | None
    weights: tuple[MemoryPart, ...]
    runtime: tuple[MemoryPart, ...]
    total: int
    complete: bool


def memory_of(shape: ArtifactShape, setup: RunSetup, parts: Mapping[str, int]) -> Memory:
    """Return what running takes with llama.cpp's defaults; ``parts``: bytes of the file's parts, by name."""
    keys = None if shape.metadata is None else _Keys(shape.metadata, shape.architecture)
    values, certainty, how = _kv_values(shape, setup, keys)
    a_token = None if values is None else round(values * setup.kv_value_bytes)
    cache = MemoryPart("KV cache", None if a_token is None else a_token * setup.cells, certainty, how)
    compute = MemoryPart("compute buffer", *_compute(shape, setup, keys))
    left = MemoryPart("reserve", setup.reserve, "chosen", "left free for the system and other programs")
    runtime = (cache, compute, left)
    known = [part.bytes for part in runtime if part.bytes is not None]
    total = shape.bytes + sum(known)
    return Memory(setup, a_token, _weights(shape, parts), runtime, total, len(known) == len(runtime))


def _weights(shape: ArtifactShape, parts: Mapping[str, int]) -> tuple[MemoryPart, ...]:
    found = [MemoryPart(name, size, "exact", "from the plan") for name, size in parts.items()]
    between = shape.bytes - sum(parts.values())
    return (*found, MemoryPart("header and padding", between, "exact", "metadata, tokenizer, alignment"))


class _Keys:
    """Integer keys of one architecture; a list has one value a layer."""

    def __init__(self, metadata: Mapping[str, MetaValue], architecture: str) -> None:
        self._metadata, self._architecture = metadata, architecture

    def value(self, key: str) -> Any:
        found = self._metadata.get(f"{self._architecture}.{key}")
        return None if found is None else found.value

    def integer(self, key: str, default: int, layer: int = 0) -> int:
        value = self.value(key)
        if isinstance(value, list):
            value = value[layer] if layer < len(value) else None
        if value is None:
            return default
        if not isinstance(value, int):
            raise CollabError(f"{self._architecture}.{key} is {str(value)[:40]!r}, not a whole number")
        return value


def _kv_values(shape: ArtifactShape, setup: RunSetup, keys: _Keys | None) -> tuple[int | None, Certainty, str]:
    """Values that the cache holds a token, over all layers; how certain that is, and where it is from."""
    if keys is None:
        values = sum(_kv_values_by_size(shape).values())
        if not values:
            return None, "estimate", "left out: give the model"
        return values, "exact", f"{setup.kv_type}, from the sizes of the tensors that make keys and values"
    layers = sorted(_kv_values_by_size(shape)) or _attention_layers(shape)
    mla = keys.integer("attention.key_length_mla", 0) > 0
    values = sum(_layer_values(keys, layer, mla) for layer in layers)
    kind = "MLA, one latent vector a layer" if mla else "keys and values of every KV head"
    if keys.integer("attention.sliding_window", 0):
        return values, "upper bound", f"{setup.kv_type}, {kind}; sliding-window layers hold less"
    return values, "exact", f"{setup.kv_type}, {kind}, from the model's metadata"


def _layer_values(keys: _Keys, layer: int, mla: bool) -> int:
    """llama-kv-cache.cpp:220-234: key length × KV heads, and as much for values unless they are in the latent."""
    heads = keys.integer("attention.head_count", 1, layer)
    kv_heads = keys.integer("attention.head_count_kv", heads, layer)
    width = keys.integer("embedding_length", 0) // max(heads, 1)
    key, value = (keys.integer(f"attention.{name}_length", width, layer) for name in ("key", "value"))
    return kv_heads * (key if mla else key + value)


def _attention_layers(shape: ArtifactShape) -> list[int]:
    found = {layer_of(name) for name in shape.tensors if role_of(name) == Role.ATTENTION}
    return sorted(layer for layer in found if layer is not None)


def _kv_values_by_size(shape: ArtifactShape) -> dict[int, int]:
    """By layer: rows of attn_k and attn_v, or of MLA's attn_kv_a_mqa, of which each makes one cached value.

    Empty when they do not tell: fused attn_qkv, or the older form of MLA, whose cache is not latent.
    """
    width = _size(shape, "output_norm.weight")
    found: dict[int, int] = {}
    for name in shape.tensors:
        layer, part = layer_of(name), name.split(".", 2)[-1]
        if part in _OTHER_CACHE:
            return {}
        if layer is not None and width and part in _MAKES_CACHE:
            found[layer] = found.get(layer, 0) + _size(shape, name) // width
    return found


_MAKES_CACHE = ("attn_k.weight", "attn_v.weight", "attn_kv_a_mqa.weight")
_OTHER_CACHE = ("attn_kv_b.weight",)


def _size(shape: ArtifactShape, name: str) -> int:
    return shape.tensors[name].weights if name in shape.tensors else 0


def _compute(shape: ArtifactShape, setup: RunSetup, keys: _Keys | None) -> tuple[int | None, Certainty, str]:
    """Largest intermediate values of one batch: logits or experts beside the attention mask, or attention.

    Found by comparing with what llama.cpp 0.3.36 allocates on the CPU: docs/report.md.
    """
    if keys is None:
        return None, "estimate", "left out: give the model"
    width = keys.integer("embedding_length", 0)
    logits = _size(shape, "token_embd.weight") // max(width, 1)
    experts = shape.used * (width + 2 * keys.integer("expert_feed_forward_length", 0))
    with_mask = 4 * (4 * width + max(logits, experts)) + F16 * setup.cells
    bytes_a_token = max(with_mask, _attention_bytes(keys, width, setup))
    return (
        setup.ubatch * bytes_a_token,
        "estimate",
        f"largest intermediate values of {setup.ubatch} tokens, flash attention on",
    )


def _attention_bytes(keys: _Keys, width: int, setup: RunSetup) -> int:
    """Queries and outputs of all heads beside the stream. MLA has both also in the latent space, and the latent vector
    itself: as llama.cpp 0.3.36 reports for DeepSeek-V3's widths (benchmarks/scale/running_memory.py)."""
    heads = keys.integer("attention.head_count", 1)
    key, value = (keys.integer(f"attention.{name}_length", 0) for name in ("key", "value"))
    if not (mla := keys.integer("attention.key_length_mla", 0)):
        return 4 * (4 * width + heads * (key + value))
    floats = heads * (mla + key + value + keys.integer("attention.value_length_mla", 0)) + value
    return 4 * (2 * width + floats) + F16 * setup.cells
