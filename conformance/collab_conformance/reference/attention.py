"""Causal attention of one whole sequence, scores and all."""

from __future__ import annotations

import torch

from collab_conformance.reference.hyperparameters import Hyperparameters
from collab_conformance.reference.rope import rotate
from collab_conformance.reference.weights import ReferenceWeights

Angles = tuple[torch.Tensor, torch.Tensor]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``x`` divided by the root mean square of its last axis, times ``weight``."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


def grouped_query(w: ReferenceWeights, h: Hyperparameters, layer: int, x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Attention with shared keys and values. Where the file has biases they are added, and where it has norms of
    queries and keys they are taken before rotation: of each head (Qwen3), or of all heads together (OLMoE). Between
    delta nets each head of queries brings a gate of its output. x and result [tokens, width]."""
    block, (tokens, width) = f"blk.{layer}", x.shape
    gated, has_sinks = h.attention == "delta-net", h.attention == "sinks"

    def projected(part: str, size: int) -> torch.Tensor:
        made = x @ w(f"{block}.attn_{part}.weight", (size, width)).T
        bias = f"{block}.attn_{part}.bias"
        return made + w(bias, (size,)) if bias in w.file.tensors else made

    def heads(part: str, count: int, length: int) -> torch.Tensor:
        return projected(part, count * length).view(tokens, count, length)

    def turned(part: str, count: int, made: torch.Tensor) -> torch.Tensor:
        size, name = count * h.key_length, f"{block}.attn_{part}_norm.weight"
        if name in w.file.tensors and len(w(name, (-1,))) == size:
            made = rms_norm(made, w(name, (size,)), h.epsilon)
        made = made.reshape(tokens, count, h.key_length)
        if name in w.file.tensors and len(w(name, (-1,))) != size:
            made = rms_norm(made, w(name, (h.key_length,)), h.epsilon)
        return rotate(made, angles, h.rope.interleaved)

    asked, gates = projected("q", h.heads * h.key_length * (2 if gated else 1)), None
    if gated:
        asked, gates = (part.flatten(1) for part in asked.view(tokens, h.heads, -1).chunk(2, -1))
    queries = turned("q", h.heads, asked)
    keys = turned("k", h.kv_heads, projected("k", h.kv_heads * h.key_length))
    values = heads("v", h.kv_heads, h.value_length)
    share = h.heads // h.kv_heads
    window = h.window if layer % 2 == 0 else None
    sinks = w(f"{block}.attn_sinks.weight", (h.heads,)) if has_sinks else None
    keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
    mixed = _attend(queries, keys, values, h.scale, window, sinks)
    if gates is not None:
        mixed = mixed * gates.sigmoid()
    out = mixed @ w(f"{block}.attn_output.weight", (width, h.heads * h.value_length)).T
    return out + w(f"{block}.attn_output.bias", (width,)) if has_sinks else out


def latent(w: ReferenceWeights, h: Hyperparameters, layer: int, x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """DeepSeek's MLA with keys and values unfolded from the latent. x and result [tokens, width]."""
    assert h.latent is not None
    block, (tokens, width), rotary = f"blk.{layer}", x.shape, h.rope.dimensions
    plain = h.key_length - rotary
    queries = _latent_queries(w, h, block, x).view(tokens, h.heads, h.key_length)
    queries = torch.cat((queries[..., :plain], rotate(queries[..., plain:], angles, h.rope.interleaved)), -1)
    both = x @ w(f"{block}.attn_kv_a_mqa.weight", (h.latent + rotary, width)).T
    compressed = rms_norm(both[:, : h.latent], w(f"{block}.attn_kv_a_norm.weight", (h.latent,)), h.epsilon)
    shared = rotate(both[:, None, h.latent :], angles, h.rope.interleaved).expand(-1, h.heads, -1)
    keys = torch.einsum("tr,hrd->thd", compressed, w(f"{block}.attn_k_b.weight", (h.heads, h.latent, plain)))
    values = torch.einsum("tr,hvr->thv", compressed, w(f"{block}.attn_v_b.weight", (h.heads, h.value_length, h.latent)))
    mixed = _attend(queries, torch.cat((keys, shared), -1), values, h.scale)
    return mixed @ w(f"{block}.attn_output.weight", (width, h.heads * h.value_length)).T


def _latent_queries(w: ReferenceWeights, h: Hyperparameters, block: str, x: torch.Tensor) -> torch.Tensor:
    """Queries [tokens, heads * key_length], through a latent of their own where the file has one."""
    size, width = h.heads * h.key_length, x.shape[-1]
    if f"{block}.attn_q.weight" in w.file.tensors:
        return x @ w(f"{block}.attn_q.weight", (size, width)).T
    small = x @ w(f"{block}.attn_q_a.weight", (-1, width)).T
    small = rms_norm(small, w(f"{block}.attn_q_a_norm.weight", (small.shape[-1],)), h.epsilon)
    return small @ w(f"{block}.attn_q_b.weight", (size, small.shape[-1])).T


def _attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention of [tokens, heads, length] each: [tokens, heads * value length]. A token sees the ``window``
    last tokens, itself among them. ``sinks`` [heads]: a score more, which takes weight and gives nothing."""
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
    unseen = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    if window is not None:
        unseen |= torch.ones(scores.shape[1:], dtype=torch.bool).tril(-window)
    scores = scores.masked_fill(unseen, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, len(queries), 1)), -1)
    weights = scores.softmax(-1)[..., : len(keys)]
    return torch.einsum("hqk,khd->qhd", weights, values).flatten(1)
