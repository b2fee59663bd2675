"""Plain PyTorch decoders of the small families, as Hugging Face and llama.cpp compute them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.train.attention import GroupedQueryAttention, LatentAttention
from benchmarks.train.experts import Experts
from benchmarks.train.layers import DenseFeedForward, Norm, linear
from benchmarks.train.shapes import Shape


class Block(nn.Module):
    def __init__(self, s: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(s.width), Norm(s.width)
        self.self_attn = LatentAttention(s) if s.family == "deepseek" else GroupedQueryAttention(s)
        self.mlp = DenseFeedForward(s, s.dense_width) if layer < s.dense else Experts(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Parameter(torch.randn(s.vocabulary, s.width) * 0.5)
        self.layers = nn.ModuleList(Block(s, i) for i in range(s.layers))
        self.norm = Norm(s.width)
        self.lm_head = linear(s.vocabulary, s.width, 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> logits [B, T, V]."""
        x = self.embed_tokens[ids]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.lm_head.T

    def expert_layers(self) -> list[Experts]:
        return [b.mlp for b in self.layers if isinstance(b.mlp, Experts)]
