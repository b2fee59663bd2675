"""Rows of any type that plans offer, to floats."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from collab_vllm.ggml import i_quants, k_quants
from collab_vllm.ggml.compiled import Compiled
from collab_vllm.ggml.tables import four_bit_values, grid, signs

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


def dequantize(rows: Tensor, type_name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8[rows, bytes a row] at ``type_name`` to ``dtype``[rows, values]: float32, rounded to it.

    KeyError for a type that is not SUPPORTED.
    """
    if type_name in _PLAIN:
        return rows.contiguous().view(_PLAIN[type_name]).to(torch.float32).to(dtype)
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    blocks = rows.reshape(-1, size)
    return _converter(type_name, dtype)(blocks, *tables_of(type_name, rows.device)).reshape(rows.shape[0], -1)


@cache
def _converter(type_name: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Compiled, except for Q8_0, which PyTorch's own operations convert faster (benchmarks/vllm_artifact.py)."""
    plain = rounded(BLOCKS[type_name], dtype)
    return plain if type_name == "Q8_0" else Compiled(type_name, plain)


def rounded(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """``function`` with its result at ``dtype``: one loop when it is compiled."""

    def convert(blocks: Tensor, *tables: Tensor) -> Tensor:
        return function(blocks, *tables).to(dtype)

    # Code of its own: torch.compile counts recompilations by code, and gives up after eight.
    convert.__code__ = convert.__code__.replace(co_name=f"{function.__name__}_to_{dtype}".replace(".", "_"))
    return convert


def tables_of(type_name: str, device: torch.device) -> tuple[Tensor, ...]:
    """What the type's function looks up, beside the blocks."""
    if type_name.startswith("IQ4"):
        return (four_bit_values(device),)
    if not type_name.startswith("IQ"):
        return ()
    points = grid(type_name, device)
    return (points, signs(device)) if type_name in _WITH_SIGNS else (points,)
