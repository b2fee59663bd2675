"""The decoder: embedding, blocks, head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from collab_conformance.reference.attention import Angles, grouped_query, latent, rms_norm
from collab_conformance.reference.delta_net import delta_net
from collab_conformance.reference.feed_forward import dense, experts
from collab_conformance.reference.hyperparameters import Hyperparameters
from collab_conformance.reference.model_file import ModelFile
from collab_conformance.reference.rope import rotary_angles
from collab_conformance.reference.router import RouterChoice
from collab_conformance.reference.weights import ReferenceWeights
from collab_plugin.checkpoint.families.routers import scales_experts
from collab_plugin.errors import CollabError


class ReferenceDecoder:
    """``file`` computed as ``h`` says. CollabError when it has tensors that this computation does not use, for
    then it is another computation."""

    def __init__(self, file: ModelFile, h: Hyperparameters, scales: Mapping[str, float]) -> None:
        self.h, self.weights = h, ReferenceWeights(file, scales)
        unused = sorted(set(file.tensors) - set(self._names()))
        if unused:
            raise CollabError(f"{file.path} has the tensor {unused[0]}, which the reference does not compute with")
        self.embedding = self.weights("token_embd.weight", (-1, -1))

    def run(self, tokens: list[int]) -> tuple[torch.Tensor, dict[int, RouterChoice]]:
        """Logits f64[tokens, vocabulary] and each MoE layer's choice."""
        with torch.inference_mode():
            return self._run(tokens)

    def _run(self, tokens: list[int]) -> tuple[torch.Tensor, dict[int, RouterChoice]]:
        w, h = self.weights, self.h
        angles = rotary_angles(h.rope, len(tokens))
        x = self.embedding[tokens] * h.scales.embedding
        width = x.shape[-1]
        chosen: dict[int, RouterChoice] = {}
        for layer in range(h.layers):
            normed = rms_norm(x, w(f"blk.{layer}.attn_norm.weight", (width,)), h.epsilon)
            x = x + self._mix(layer, normed, angles) * h.scales.residual
            normed = rms_norm(x, w(f"blk.{layer}.{self._second_norm(layer)}.weight", (width,)), h.epsilon)
            if layer < h.dense_layers:
                out = dense(w, layer, normed)
            else:
                out, chosen[layer] = experts(w, h, layer, normed)
            x = x + out * h.scales.residual
        x = rms_norm(x, w("output_norm.weight", (width,)), h.epsilon)
        return x @ self._head(width).T / h.scales.logits, chosen

    def _mix(self, layer: int, x: torch.Tensor, angles: Angles) -> torch.Tensor:
        """What tokens take of earlier ones."""
        w, h = self.weights, self.h
        if h.delta is not None and layer in h.delta.layers:
            return delta_net(w, h, layer, x)
        return (latent if h.attention == "latent" else grouped_query)(w, h, layer, x, angles)

    def _second_norm(self, layer: int) -> str:
        """The norm before the feed-forward half, by the name that llama.cpp gives it for the architecture."""
        return "ffn_norm" if f"blk.{layer}.ffn_norm.weight" in self.weights.file.tensors else "post_attention_norm"

    def _head(self, width: int) -> torch.Tensor:
        if "output.weight" not in self.weights.file.tensors:
            return self.embedding  # tied
        return self.weights("output.weight", (len(self.embedding), width))

    def _names(self) -> Iterable[str]:
        yield from ("token_embd.weight", "output_norm.weight", "output.weight")
        for layer in range(self.h.layers):
            yield from (f"blk.{layer}.{part}" for part in self._parts(layer))
        # Blocks past the trunk are MTP's.
        yield from (name for name in self.weights.file.tensors if _block(name) >= self.h.layers)

    def _parts(self, layer: int) -> Iterable[str]:
        """Tensors of a block that are computed with, as far as the file has them."""
        h, architecture = self.h, self.weights.file.architecture
        matrices = ["attn_norm", self._second_norm(layer)]
        if h.delta is not None and layer in h.delta.layers:
            matrices += _DELTA_NET
            yield from ("ssm_a", "ssm_dt.bias")
        else:
            matrices += ["attn_output", *(f"attn_{part}" for part in _ATTENTION[h.attention])]
            if h.attention != "latent":
                yield from (f"attn_{part}.bias" for part in ("q", "k", "v"))
        sides = [f"ffn_{part}" for part in ("gate", "up", "down")]
        if layer < h.dense_layers:
            matrices += sides
        else:
            matrices += [f"{side}{suffix}" for side in sides for suffix in ("_exps", "_shexp")]
            matrices += ["ffn_gate_inp", "ffn_gate_inp_shexp"]
            yield "exp_probs_b.bias"
            if scales_experts(architecture):
                yield from (f"{side}_exps.scale" for side in sides)
        if h.attention == "sinks":
            yield from ("attn_output.bias", "ffn_gate_inp.bias", *(f"{side}_exps.bias" for side in sides))
        yield from (f"{part}.weight" for part in matrices)


_GROUPED = ("q", "k", "v", "q_norm", "k_norm")
_ATTENTION = {
    "grouped-query": _GROUPED,
    "delta-net": _GROUPED,
    "sinks": (*_GROUPED, "sinks"),
    "latent": ("q", "q_a", "q_a_norm", "q_b", "kv_a_mqa", "kv_a_norm", "k_b", "v_b"),
}
_DELTA_NET = ("attn_qkv", "attn_gate", "ssm_conv1d", "ssm_ba", "ssm_beta", "ssm_alpha", "ssm_norm", "ssm_out")


def _block(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else -1
