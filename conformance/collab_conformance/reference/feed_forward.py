"""The feed-forward half of a block: dense, or experts one by one."""

from __future__ import annotations

import torch

from collab_conformance.reference.hyperparameters import Hyperparameters
from collab_conformance.reference.router import RouterChoice, route
from collab_conformance.reference.weights import ReferenceWeights

_LIMIT, _SHARPNESS = 7.0, 1.702


def dense(w: ReferenceWeights, layer: int, x: torch.Tensor, suffix: str = "") -> torch.Tensor:
    """SwiGLU: [tokens, width] to the same; ``suffix`` "_shexp" for the shared experts."""
    return _swiglu(w, f"blk.{layer}", suffix, x, None)


def experts(w: ReferenceWeights, h: Hyperparameters, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, RouterChoice]:
    """Routed experts and, where the file has them, shared ones: [tokens, width], and what the router chose."""
    block, width = f"blk.{layer}", x.shape[-1]
    router = w(f"{block}.ffn_gate_inp.weight", (h.router.experts, width))
    bias = f"{block}.exp_probs_b.bias"
    swayed = w(bias, (h.router.experts,)) if bias in w.file.tensors else None
    logits = x @ router.T
    if h.attention == "sinks":
        logits = logits + w(f"{block}.ffn_gate_inp.bias", (h.router.experts,))
    choice = route(h.router, logits, swayed)
    out = torch.zeros_like(x)
    compute = _clamped_swiglu if h.attention == "sinks" else _swiglu
    for expert in sorted(set(choice.ids.flatten().tolist())):
        token, slot = (choice.ids == expert).nonzero(as_tuple=True)
        out[token] += choice.weights[token, slot, None] * compute(w, block, "_exps", x[token], expert)
    if f"{block}.ffn_gate_shexp.weight" in w.file.tensors:
        shared = dense(w, layer, x, "_shexp")
        gate = f"{block}.ffn_gate_inp_shexp.weight"
        if gate in w.file.tensors:
            shared = shared * (x @ w(gate, (width,)))[:, None].sigmoid()
        out = out + shared
    return out, choice


def _swiglu(w: ReferenceWeights, block: str, suffix: str, x: torch.Tensor, expert: int | None) -> torch.Tensor:
    width = x.shape[-1]
    gate = w(f"{block}.ffn_gate{suffix}.weight", (-1, width), expert)
    up = w(f"{block}.ffn_up{suffix}.weight", gate.shape, expert)
    down = w(f"{block}.ffn_down{suffix}.weight", (width, len(gate)), expert)
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _clamped_swiglu(w: ReferenceWeights, block: str, suffix: str, x: torch.Tensor, expert: int | None) -> torch.Tensor:
    """gpt-oss' (transformers, GptOssExperts): biases, a gate sharper than SiLU, and both sides within limits."""
    width = x.shape[-1]

    def product(part: str, values: torch.Tensor, height: int) -> torch.Tensor:
        weights = w(f"{block}.ffn_{part}{suffix}.weight", (height, values.shape[-1]), expert)
        return values @ weights.T + w(f"{block}.ffn_{part}{suffix}.bias", (len(weights),), expert)

    gate = product("gate", x, -1).clamp(max=_LIMIT)
    up = product("up", x, gate.shape[-1]).clamp(-_LIMIT, _LIMIT)
    return product("down", gate * (_SHARPNESS * gate).sigmoid() * (up + 1), width)
