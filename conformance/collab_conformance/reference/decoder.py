"""The decoder: embedding, blocks, head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from collab_conformance.reference.attention import grouped_query, latent, rms_norm
from collab_conformance.reference.feed_forward import dense, experts
from collab_conformance.reference.hyperparameters import Hyperparameters
from collab_conformance.reference.model_file import ModelFile
from collab_conformance.reference.rope import rotary_angles
from collab_conformance.reference.router import RouterChoice
from collab_conformance.reference.weights import ReferenceWeights
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
        x = self.embedding[tokens]
        width = x.shape[-1]
        chosen: dict[int, RouterChoice] = {}
        for layer in range(h.layers):
            normed = rms_norm(x, w(f"blk.{layer}.attn_norm.weight", (width,)), h.epsilon)
            x = x + (latent if h.attention == "latent" else grouped_query)(w, h, layer, normed, angles)
            normed = rms_norm(x, w(f"blk.{layer}.ffn_norm.weight", (width,)), h.epsilon)
            if layer < h.dense_layers:
                x = x + dense(w, layer, normed)
            else:
                out, chosen[layer] = experts(w, h, layer, normed)
                x = x + out
        x = rms_norm(x, w("output_norm.weight", (width,)), h.epsilon)
        return x @ self._head(width).T, chosen

    def _head(self, width: int) -> torch.Tensor:
        if "output.weight" not in self.weights.file.tensors:
            return self.embedding  # tied
        return self.weights("output.weight", (len(self.embedding), width))

    def _names(self) -> Iterable[str]:
        yield from ("token_embd.weight", "output_norm.weight", "output.weight")
        attention: tuple[str, ...] = ("q", "k", "v", "q_norm", "k_norm")
        if self.h.attention == "latent":
            attention = ("q", "q_a", "q_a_norm", "q_b", "kv_a_mqa", "kv_a_norm", "k_b", "v_b")
        for layer in range(self.h.layers):
            parts = ["attn_norm", "attn_output", "ffn_norm", *(f"attn_{part}" for part in attention)]
            suffixes = ("",) if layer < self.h.dense_layers else ("_exps", "_shexp")
            parts += [f"ffn_{part}{suffix}" for suffix in suffixes for part in ("gate", "up", "down")]
            if layer >= self.h.dense_layers:
                parts += ["ffn_gate_inp", "ffn_gate_inp_shexp"]
                yield f"blk.{layer}.exp_probs_b.bias"
            yield from (f"blk.{layer}.{part}.weight" for part in parts)
            if self.h.attention == "grouped-query":
                yield from (f"blk.{layer}.attn_{part}.bias" for part in ("q", "k", "v"))
        # Blocks past the trunk are MTP's.
        yield from (name for name in self.weights.file.tensors if _block(name) >= self.h.layers)


def _block(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else -1
