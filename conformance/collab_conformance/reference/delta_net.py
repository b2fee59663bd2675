"""Gated delta nets (arXiv 2412.06464), token by token, as Qwen3-Next and Qwen3.5 have them."""

from __future__ import annotations

import torch
from torch.nn.functional import silu, softplus

from collab_conformance.reference.attention import rms_norm
from collab_conformance.reference.hyperparameters import DeltaNet, Hyperparameters
from collab_conformance.reference.weights import ReferenceWeights

_EPSILON = 1e-6  # of the lengths of queries and keys


def delta_net(w: ReferenceWeights, h: Hyperparameters, layer: int, x: torch.Tensor) -> torch.Tensor:
    """x and result [tokens, width]."""
    assert h.delta is not None
    d, block, (tokens, width) = h.delta, f"blk.{layer}", x.shape
    keys, values = d.key_heads * d.length, d.value_heads * d.length
    mixed = _convolved(x @ w(f"{block}.attn_qkv.weight", (2 * keys + values, width)).T, w, d, block)
    q, k, v = mixed.split((keys, keys, values), -1)
    beta, decay = _gates(w, d, block, x)
    heads = _key_head_of_each(w, d, block)
    q, k = (_unit(part.view(tokens, d.key_heads, d.length))[:, heads] for part in (q, k))
    out = _recall(q / d.length**0.5, k, v.view(tokens, d.value_heads, d.length), beta, decay)
    gate = x @ w(f"{block}.attn_gate.weight", (values, width)).T
    normed = rms_norm(out, w(f"{block}.ssm_norm.weight", (d.length,)), h.epsilon).flatten(1)
    return (normed * silu(gate)) @ w(f"{block}.ssm_out.weight", (width, values)).T


def _convolved(x: torch.Tensor, w: ReferenceWeights, d: DeltaNet, block: str) -> torch.Tensor:
    """Each channel [tokens, channels] over its last ``kernel`` tokens, the newest one with the last weight."""
    weights = w(f"{block}.ssm_conv1d.weight", (x.shape[1], d.kernel))
    padded = torch.cat((x.new_zeros(d.kernel - 1, x.shape[1]), x))
    return silu(sum((padded[i : i + len(x)] * weights[:, i] for i in range(d.kernel)), start=torch.zeros_like(x)))


def _gates(w: ReferenceWeights, d: DeltaNet, block: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of a token is written, and how much of the state stays: [tokens, value heads] each."""
    width = x.shape[1]
    if f"{block}.ssm_ba.weight" in w.file.tensors:  # heads of keys one by one: what is written, then what is forgotten
        both = (x @ w(f"{block}.ssm_ba.weight", (2 * d.value_heads, width)).T).view(len(x), d.key_heads, -1)
        written, forgotten = (part.flatten(1) for part in both.chunk(2, -1))
    else:
        written, forgotten = (x @ w(f"{block}.ssm_{n}.weight", (d.value_heads, width)).T for n in ("beta", "alpha"))
    speed = w(f"{block}.ssm_a", (d.value_heads,))
    return written.sigmoid(), (speed * softplus(forgotten + w(f"{block}.ssm_dt.bias", (d.value_heads,)))).exp()


def _key_head_of_each(w: ReferenceWeights, d: DeltaNet, block: str) -> torch.Tensor:
    """The head of keys that each head of values has: those of one behind each other (Qwen3-Next), or in turn."""
    if f"{block}.ssm_ba.weight" in w.file.tensors:
        return torch.arange(d.key_heads).repeat_interleave(d.value_heads // d.key_heads)
    return torch.arange(d.key_heads).repeat(d.value_heads // d.key_heads)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPSILON)


def _recall(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """q, k, v [tokens, heads, length]: what each head's state, a map from keys to values, gives for the queries."""
    state = v.new_zeros(v.shape[1], q.shape[2], v.shape[2])
    out = torch.zeros_like(v)
    for t in range(len(v)):
        state = state * decay[t, :, None, None]
        known = torch.einsum("hkv,hk->hv", state, k[t])
        state = state + torch.einsum("hk,hv->hkv", k[t], (v[t] - known) * beta[t, :, None])
        out[t] = torch.einsum("hkv,hk->hv", state, q[t])
    return out
