"""Qwen3-MoE in numpy and float64, written from the published architecture: what llama.cpp is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass
class Trace:
    """One window's forward pass. Per layer: ids i64[n, k], weights and output norms f64[n, k], and the squared norms
    f64[2, n] of the residual stream after attention and after the layer; per tensor the sum of squared inputs
    f64[E or 1, m]."""

    logits: F64
    ids: dict[int, I64] = field(default_factory=dict)
    weights: dict[int, F64] = field(default_factory=dict)
    norms: dict[int, F64] = field(default_factory=dict)
    streams: dict[int, F64] = field(default_factory=dict)
    sum2: dict[str, F64] = field(default_factory=dict)


def _rms(x: F64, weight: F64, eps: float) -> F64:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight


def _softmax(x: F64) -> F64:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _rotate(x: F64, base: float) -> F64:
    """Rotary embedding on x [n, heads, d], the two halves of d paired; position = row."""
    n, _, d = x.shape
    angle = np.arange(n)[:, None] * base ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def forward(checkpoint: Checkpoint, tokens: I64) -> Trace:
    w = {name: checkpoint.read(name).astype(np.float64) for name in checkpoint.tensors}
    key = {k.removeprefix("qwen3moe."): v.value for k, v in checkpoint.metadata.items()}
    heads, kv_heads, d = key["attention.head_count"], key["attention.head_count_kv"], key["attention.key_length"]
    eps, base, k = key["attention.layer_norm_rms_epsilon"], key["rope.freq_base"], key["expert_used_count"]
    n = len(tokens)
    mask = np.triu(np.full((n, n), -np.inf), 1)
    trace = Trace(np.empty(0))
    x = w["token_embd.weight"][tokens]
    for layer in range(key["block_count"]):
        b = f"blk.{layer}"

        def linear(name: str, h: F64, b: str = b) -> F64:
            trace.sum2[f"{b}.{name}.weight"] = np.square(h).sum(0, keepdims=True)
            return h @ w[f"{b}.{name}.weight"].T

        h = _rms(x, w[f"{b}.attn_norm.weight"], eps)
        q = _rotate(_rms(linear("attn_q", h).reshape(n, heads, d), w[f"{b}.attn_q_norm.weight"], eps), base)
        keys = _rotate(_rms(linear("attn_k", h).reshape(n, kv_heads, d), w[f"{b}.attn_k_norm.weight"], eps), base)
        values = linear("attn_v", h).reshape(n, kv_heads, d)
        keys, values = (np.repeat(t, heads // kv_heads, axis=1) for t in (keys, values))
        attention = _softmax(np.einsum("qhd,khd->hqk", q, keys) / np.sqrt(d) + mask)
        x = x + linear("attn_output", np.einsum("hqk,khd->qhd", attention, values).reshape(n, heads * d))
        after_attention = np.square(x).sum(-1)
        h = _rms(x, w[f"{b}.ffn_norm.weight"], eps)
        x = x + _experts(trace, w, layer, h, _softmax(linear("ffn_gate_inp", h)), k)
        trace.streams[layer] = np.stack([after_attention, np.square(x).sum(-1)])
    last = _rms(x, w["output_norm.weight"], eps)
    trace.sum2["output.weight"] = np.square(last).sum(0, keepdims=True)
    trace.logits = last @ w["output.weight"].T
    return trace


def _experts(trace: Trace, w: dict[str, F64], layer: int, h: F64, probabilities: F64, k: int) -> F64:
    gate, up, down = (f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
    ids = np.argsort(-probabilities, axis=-1)[:, :k]
    weights = np.take_along_axis(probabilities, ids, -1)
    weights /= weights.sum(-1, keepdims=True)
    out, norms = np.zeros_like(h), np.zeros_like(weights)
    for name in (gate, up, down):
        trace.sum2[name] = np.zeros((len(w[gate]), w[name].shape[-1]))
    for token, chosen in enumerate(ids):
        for slot, expert in enumerate(chosen):
            g = w[gate][expert] @ h[token]
            inner = g / (1 + np.exp(-g)) * (w[up][expert] @ h[token])
            y = w[down][expert] @ inner
            norms[token, slot] = weights[token, slot] * np.linalg.norm(y)
            out[token] += weights[token, slot] * y
            for name, into in ((gate, h[token]), (up, h[token]), (down, inner)):
                trace.sum2[name][expert] += np.square(into)
    trace.ids[layer], trace.weights[layer], trace.norms[layer] = ids, weights, norms
    return out
