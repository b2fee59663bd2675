"""Checkpoints of transformers in the packed layouts that models are published in. Runs in vLLM's environment.

Each function takes a checkpoint's tensors by name and gives the packed ones, and the same names with the values that
they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

Tensors = dict[str, torch.Tensor]
_EXPERT = re.compile(r"\.experts\.\d+\.\w+\.weight$")
_FLOAT8 = re.compile(r"\.(wq_a|wq_b|wkv|wo_a|wo_b|shared_experts\.w[123])\.weight$")  # but those of compressors
_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# What transformers calls otherwise than the published DeepSeek-V4.
_V4_NAMES = (
    *(("model.embed_tokens.", "embed."), ("lm_head.", "head."), ("model.hc_head.hc_", "hc_head_"), ("model.", "")),
    *((".attn.norm.", ".attn.kv_norm."),),
)
# transformers 5.19 writes the decoder's layers under the name of those of the vision tower.
_KIMI_NAMES = (
    ("language_model.model.blocks.", "language_model.model.layers."),
    ("model.mm_projector.", "mm_projector."),
)


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for theirs, own in names:
        name = name.replace(theirs, own)
    return name


def kimi_k25(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """As Kimi-K2.5 is published: experts in whole numbers of 4 bits with a BF16 scale for 32."""
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    args = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    packed, values = dict(tensors), dict(tensors)
    for name in filter(_EXPERT.search, tensors):
        weight = packed.pop(name).bfloat16()
        scale = (weight.float().unflatten(1, (-1, 32)).abs().amax(-1) / 7).bfloat16()
        parts = {
            "weight": weight,
            "weight_scale": scale,
            "weight_zero_point": torch.zeros_like(scale, dtype=torch.int8),
        }
        stored = compressor.compress(parts, args)
        back = compressor.decompress(dict(stored), args)["weight"].float().unflatten(1, (-1, 32))
        wide = scale.float()[..., None]
        values[name] = (torch.round(back / wide) * wide).flatten(1)  # the library rounds the product to BF16
        base = name.removesuffix("weight")
        packed |= {base + key: stored[key].contiguous() for key in ("weight_packed", "weight_scale", "weight_shape")}
    return {_renamed(name, _KIMI_NAMES): tensor for name, tensor in packed.items()}, values


def deepseek_v4(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """As DeepSeek-V4 is published: experts of four bits and the rest FP8, with powers of two as scales; BF16 else."""
    generator = torch.Generator().manual_seed(0)
    packed, values = {}, {}
    for name, tensor in tensors.items():
        parts, values[name] = _as_published(_renamed(name, _V4_NAMES), tensor, generator)
        packed |= {key: part.contiguous() for key, part in parts.items()}
    return packed, values


def _as_published(name: str, tensor: torch.Tensor, generator: torch.Generator) -> tuple[Tensors, torch.Tensor]:
    scale = f"{name.removesuffix('.weight')}.scale"
    if _EXPERT.search(name):
        codes = torch.randint(0, 16, tensor.shape, generator=generator, dtype=torch.uint8)
        exponents = torch.randint(121, 125, (tensor.shape[0], tensor.shape[1] // 32), generator=generator)
        signed = torch.where(codes < 8, 1.0, -1.0) * _E2M1[(codes & 7).long()]
        wide = torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)
        pairs = codes[:, 0::2] | (codes[:, 1::2] << 4)
        scales = exponents.to(torch.uint8).view(torch.float8_e8m0fnu)
        return {name: pairs.view(torch.int8), scale: scales}, signed * wide
    if _FLOAT8.search(name) and "compressor" not in name:
        grid = (-(-tensor.shape[0] // 128), -(-tensor.shape[1] // 128))
        scales = torch.full(grid, 120, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        codes = (tensor / 2.0**-7).to(torch.float8_e4m3fn)
        return {name: codes, scale: scales}, codes.float() * 2.0**-7
    return {name: tensor}, tensor


PACK = {"kimi-k2.5": kimi_k25, "deepseek-v4": deepseek_v4}
