"""What a GGUF's keys say about the computation; a key that is not known here is refused, never ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from collab_plugin.checkpoint.families.family import Decoder
from collab_plugin.checkpoint.families.routers import Gating, Router, router_of
from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import known_families

# They size tensors, which say so themselves, or tell a reader something that is not computed with.
_SAID_BY_TENSORS = {
    "vocab_size",
    "embedding_length",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "attention.q_lora_rank",
    "rope.scaling.finetuned",
    # Of pictures: sections of the rotary embedding turn text alike, and layers that a vision tower feeds.
    "rope.dimension_sections",
    "n_deepstack_layers",
}


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071). ``magnitude`` multiplies cosines and sines."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    magnitude: float


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of ``dimensions`` channels. ``interleaved``: pairs are neighbours, else halves.
    ``linear``: positions are divided by it."""

    dimensions: int
    base: float
    interleaved: bool
    linear: float = 1.0
    yarn: Yarn | None = None


@dataclass(frozen=True)
class RouterHyperparameters:
    """``groups`` 1: none. ``normalise``: weights of the chosen sum to 1 before ``scale``."""

    experts: int
    used: int
    gating: Gating
    normalise: bool
    scale: float
    groups: int = 1
    groups_used: int = 1


@dataclass(frozen=True)
class DeltaNet:
    """Heads of keys and of values, the length of all of them, and the width of the convolution before them.
    ``layers``: those that are delta nets."""

    key_heads: int
    value_heads: int
    length: int
    kernel: int
    layers: frozenset[int]


@dataclass(frozen=True)
class StreamFactors:
    """Factors of the embedding and of what blocks add to the stream; ``logits`` divides."""

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True)
class Hyperparameters:
    """``key_length`` and ``value_length`` of a head, as attention computes them (MLA: not absorbed);
    ``latent``: width of MLA's latent, None without MLA; ``scale`` multiplies attention's scores. ``window``: tokens
    that every other layer, the first one included, attends to; None for all. ``delta``: None without delta nets."""

    attention: Literal["grouped-query", "latent", "sinks", "delta-net"]
    layers: int
    dense_layers: int
    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    latent: int | None
    scale: float
    epsilon: float
    rope: Rope
    router: RouterHyperparameters
    window: int | None = None
    delta: DeltaNet | None = None
    scales: StreamFactors = StreamFactors()


class _Keys:
    """Checked access that remembers what was asked for."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values, self.seen = path, values, set(_SAID_BY_TENSORS)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise CollabError(f"{self.path} has {key} = {str(value)[:40]!r}, not one whole number for all layers")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise CollabError(f"{self.path} has {key} = {str(value)[:40]!r}, not a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, default))

    def text(self, key: str, default: str) -> str:
        return str(self._get(key, default))

    def flags(self, key: str, default: Sequence[bool]) -> list[bool]:
        """One for each layer."""
        value = self._get(key, default)
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise CollabError(f"{self.path} has {key} = {str(value)[:40]!r}, not one for each of {len(default)} layers")
        return [bool(flag) for flag in value]

    def _get(self, key: str, default: Any) -> Any:
        self.seen.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise CollabError(f"{self.path} has no key {key}")
        return value


def read_hyperparameters(path: Path, architecture: str, values: Mapping[str, Any]) -> Hyperparameters:
    """Read the keys of ``architecture`` (prefix removed). CollabError for another architecture and for a key
    that is missing, ill-typed, impossible or unknown."""
    family = next((f for f in known_families() if f.architecture == architecture and f.decoder), None)
    if family is None or family.decoder is None:
        raise CollabError(
            f"no reference for architecture {architecture}: record a pack with `verify pack` on a machine you "
            "trust, and use it with `against`"
        )
    keys = _Keys(path, values)
    read = _latent if family.decoder.attention == "latent" else _grouped_query
    found = read(keys, family.decoder, router_of(architecture))
    unknown = sorted(set(values) - keys.seen)
    if unknown:
        raise CollabError(f"{path} has the key {architecture}.{unknown[0]}, which the reference does not compute with")
    _check(path, found)
    return found


def _grouped_query(keys: _Keys, decoder: Decoder, routes: Router) -> Hyperparameters:
    heads = keys.integer("attention.head_count")
    length = keys.integer("attention.key_length", keys.integer("embedding_length", 0) // max(heads, 1))
    yarn = _yarn(keys, 0.0)
    if keys.integer("interleave_moe_layer_step", 1) > 1:
        raise CollabError(f"{keys.path} has layers without experts between those with them, which is not computed here")
    layers = _layers(keys)
    scale = keys.number("attention.scale", 0.0) if decoder.scaled else 0.0
    return Hyperparameters(
        attention=decoder.attention,
        layers=layers,
        dense_layers=keys.integer("leading_dense_block_count", 0),
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        key_length=length,
        value_length=keys.integer("attention.value_length", length),
        latent=None,
        scale=scale or 1 / math.sqrt(max(length, 1)),
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(keys, length, decoder.interleaved_rope, yarn),
        router=_router(keys, routes),
        window=keys.integer("attention.sliding_window") if decoder.attention == "sinks" else None,
        delta=_delta_net(keys, layers) if decoder.attention == "delta-net" else None,
        scales=_scales(keys) if decoder.scaled else StreamFactors(),
    )


def _layers(keys: _Keys) -> int:
    """Without MTP blocks: they come last, and no logit depends on them."""
    return keys.integer("block_count") - keys.integer("nextn_predict_layers", 0)


def _delta_net(keys: _Keys, layers: int) -> DeltaNet:
    keys.integer("ssm.inner_size", 0)  # length times heads of values
    every = max(keys.integer("full_attention_interval", 4), 1)
    linear = keys.flags("attention.recurrent_layers", [(layer + 1) % every != 0 for layer in range(layers)])
    found = DeltaNet(
        key_heads=keys.integer("ssm.group_count"),
        value_heads=keys.integer("ssm.time_step_rank"),
        length=keys.integer("ssm.state_size"),
        kernel=keys.integer("ssm.conv_kernel"),
        layers=frozenset(layer for layer, is_linear in enumerate(linear) if is_linear),
    )
    if not found.key_heads or found.value_heads % found.key_heads or not found.length or not found.kernel:
        raise CollabError(
            f"{keys.path} cannot be computed: {found.value_heads} heads of values, {found.key_heads} of keys"
        )
    return found


def _scales(keys: _Keys) -> StreamFactors:
    return StreamFactors(
        keys.number("embedding_scale", 1.0) or 1.0,
        keys.number("residual_scale", 1.0) or 1.0,
        keys.number("logit_scale", 1.0) or 1.0,
    )


def _latent(keys: _Keys, decoder: Decoder, routes: Router) -> Hyperparameters:
    for key in ("attention.key_length", "attention.value_length", "attention.head_count_kv"):
        keys.integer(key, 0)  # of the absorbed form, which computes the same
    length = keys.integer("attention.key_length_mla")
    # GGUF holds a tenth of the checkpoint's mscale_all_dim.
    log_multiplier = 10 * keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    yarn = _yarn(keys, log_multiplier)
    magnitude = 1 + 0.1 * log_multiplier * math.log(yarn.factor) if yarn else 1.0
    return Hyperparameters(
        attention="latent",
        layers=_layers(keys),
        dense_layers=keys.integer("leading_dense_block_count", 0),
        heads=keys.integer("attention.head_count"),
        kv_heads=keys.integer("attention.head_count"),
        key_length=length,
        value_length=keys.integer("attention.value_length_mla"),
        latent=keys.integer("attention.kv_lora_rank"),
        scale=magnitude**2 / math.sqrt(max(length, 1)),
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(keys, keys.integer("rope.dimension_count"), decoder.interleaved_rope, yarn),
        router=_router(keys, routes),
    )


def _router(keys: _Keys, routes: Router) -> RouterHyperparameters:
    names: dict[int, Gating] = {0: routes.gating, 1: "softmax", 2: "sigmoid", 3: "softmax-after-top-k"}
    number = keys.integer("expert_gating_func", 0)
    gating = names.get(number)
    if gating is None:
        raise CollabError(f"{keys.path} has expert_gating_func {number}; softmax (1, 3) and sigmoid (2) are known")
    said = keys.flag("expert_weights_norm", False)
    return RouterHyperparameters(
        experts=keys.integer("expert_count"),
        used=keys.integer("expert_used_count"),
        gating=gating,
        normalise=said if routes.renormalises is None else routes.renormalises,
        scale=keys.number("expert_weights_scale", 1.0) or 1.0,  # engines take 0 for "not set"
        groups=max(keys.integer("expert_group_count", 1), 1),
        groups_used=max(keys.integer("expert_group_used_count", 1), 1),
    )


def _rope(keys: _Keys, length: int, interleaved: bool, yarn: Yarn | None) -> Rope:
    kind = keys.text("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise CollabError(f"{keys.path} scales rope by {kind!r}; none, linear and yarn are known")
    linear = keys.number("rope.scaling.factor", 1.0) if kind == "linear" else 1.0
    return Rope(keys.integer("rope.dimension_count", length), keys.number("rope.freq_base"), interleaved, linear, yarn)


def _yarn(keys: _Keys, log_multiplier: float) -> Yarn | None:
    context = keys.integer("context_length", 0)
    original = keys.integer("rope.scaling.original_context_length", context)
    fast, slow = keys.number("rope.scaling.yarn_beta_fast", 32.0), keys.number("rope.scaling.yarn_beta_slow", 1.0)
    if keys.text("rope.scaling.type", "none") != "yarn":
        return None
    factor = keys.number("rope.scaling.factor")
    if factor < 1 or original < 1:
        raise CollabError(f"{keys.path} has a YaRN factor of {factor} from a context of {original}")
    # With a multiplier of its own DeepSeek corrects attention's scale instead (mscale = mscale_all_dim).
    magnitude = 1.0 if log_multiplier else 1 + 0.1 * math.log(factor)
    return Yarn(factor, original, fast, slow, magnitude)


def _check(path: Path, h: Hyperparameters) -> None:
    """Numbers that contradict each other."""
    r = h.router
    wrong = (
        (not 1 <= r.used <= r.experts, f"{r.used} experts used of {r.experts}"),
        (r.experts % r.groups != 0, f"{r.groups} groups for {r.experts} experts"),
        (r.groups > 1 and r.experts // r.groups < 2, f"{r.groups} groups for {r.experts} experts"),
        (not r.groups_used <= r.groups, f"{r.groups_used} groups used of {r.groups}"),
        (r.used > r.experts // r.groups * r.groups_used, f"{r.used} experts used of {r.groups_used} groups"),
        (h.heads < 1 or h.kv_heads < 1 or h.heads % h.kv_heads != 0, f"{h.kv_heads} key heads for {h.heads} heads"),
        (h.rope.dimensions % 2 != 0 or h.rope.dimensions > h.key_length, f"{h.rope.dimensions} rotary channels"),
        (not 0 <= h.dense_layers <= h.layers or h.layers < 1, f"{h.layers} layers, {h.dense_layers} dense"),
        (h.rope.base <= 1 or h.rope.linear <= 0, f"a rotary base of {h.rope.base}, scaled by {h.rope.linear}"),
    )
    for is_wrong, what in wrong:
        if is_wrong:
            raise CollabError(f"{path} cannot be computed: {what}")
