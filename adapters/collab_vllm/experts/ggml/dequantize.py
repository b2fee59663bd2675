"""Rows of any type that plans offer, to float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from collab_vllm.experts.ggml import i_quants, k_quants
from collab_vllm.experts.ggml.compiled import Compiled
from collab_vllm.experts.ggml.grid_tables import four_bit_values, grid, signs

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCKS: dict[str, Callable[..., Tensor]] = {
    "Q4_0": k_quants.q4_0,
    "Q5_0": k_quants.q5_0,
    "Q5_1": k_quants.q5_1,
    "Q8_0": k_quants.q8_0,
    "Q2_K": k_quants.q2_k,
    "Q3_K": k_quants.q3_k,
    "Q4_K": k_quants.q4_k,
    "Q5_K": k_quants.q5_k,
    "Q6_K": k_quants.q6_k,
    "IQ4_NL": k_quants.iq4_nl,
    "IQ4_XS": k_quants.iq4_xs,
    "IQ1_S": i_quants.iq1_s,
    "IQ1_M": i_quants.iq1_m,
    "IQ2_XXS": i_quants.iq2_xxs,
    "IQ2_XS": i_quants.iq2_xs,
    "IQ2_S": i_quants.iq2_s,
    "IQ3_XXS": i_quants.iq3_xxs,
    "IQ3_S": i_quants.iq3_s,
}
_WITH_SIGNS = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")
SUPPORTED = frozenset(_PLAIN) | frozenset(BLOCKS)
_FAST = {name: Compiled(function) for name, function in BLOCKS.items() if name != "Q8_0"}
"""All but Q8_0, which PyTorch's own operations convert in half the time (benchmarks/vllm/artifact.py)."""


def dequantize(rows: Tensor, type_name: str) -> Tensor:
    """uint8[rows, bytes a row] at ``type_name`` to f32[rows, values]. KeyError for a type that is not SUPPORTED."""
    if type_name in _PLAIN:
        return rows.contiguous().view(_PLAIN[type_name]).to(torch.float32)
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    blocks = rows.reshape(-1, size)
    function = _FAST.get(type_name, BLOCKS[type_name])
    return function(blocks, *tables_of(type_name, rows.device)).reshape(rows.shape[0], -1)


def tables_of(type_name: str, device: torch.device) -> tuple[Tensor, ...]:
    """What the type's function looks up, beside the blocks."""
    if type_name.startswith("IQ4"):
        return (four_bit_values(device),)
    if not type_name.startswith("IQ"):
        return ()
    points = grid(type_name, device)
    return (points, signs(device)) if type_name in _WITH_SIGNS else (points,)
