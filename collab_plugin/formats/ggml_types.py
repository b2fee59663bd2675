"""The ggml types offered, their sizes, and which tensors may have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class TypeInfo:
    """A ggml type: ``block`` values take ``nbytes`` bytes.

    ``needs_imatrix``: ggml aborts without an importance vector (ggml.c:8059: IQ2_XXS, IQ2_XS, IQ1_S).
    ``wants_imatrix``: llama-quantize refuses without one (llama-quant.cpp:856-875), and quality is
    poor (docs/sources.md, Error of types: IQ1_M 0.58 against 0.40 relative error).
    """

    name: str
    block: int
    nbytes: int
    needs_imatrix: bool = False
    wants_imatrix: bool = False

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / self.block


_NEEDS = {"IQ1_S", "IQ2_XXS", "IQ2_XS"}
_WANTS = _NEEDS | {"IQ1_M", "IQ2_S", "IQ3_XXS"}
# Ascending bits. Q4_0, Q5_0, Q5_1 and IQ4_NL are what rows that are not a multiple of 256 fall back to.
_NAMES = [
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "Q2_K",
    "IQ3_XXS",
    "IQ3_S",
    "Q3_K",
    "IQ4_XS",
    "IQ4_NL",
    "Q4_0",
    "Q4_K",
    "Q5_0",
    "Q5_K",
    "Q5_1",
    "Q6_K",
    "Q8_0",
    "F16",
    "BF16",
    "F32",
]

TYPES: dict[str, TypeInfo] = {
    name: TypeInfo(name, *GGML_QUANT_SIZES[GGMLQuantizationType[name]], name in _NEEDS, name in _WANTS)
    for name in _NAMES
}
QUANTIZED = tuple(name for name in TYPES if not name.endswith(("F16", "F32")))
ONLY_COPIED = ("MXFP4", "NVFP4")
"""Types that models are trained in: read and copied, never quantized to."""
SUPER_BLOCK = tuple(name for name in QUANTIZED if TYPES[name].block == 256)

# llama-quant.cpp:398-427: what a row width that is no multiple of 256 gets instead.
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def type_info(name: str) -> TypeInfo:
    """Return the type called ``name`` (any case); CollabError listing the known ones."""
    found = TYPES.get(name.upper())
    if found is None:
        raise CollabError(f"unknown type {name!r}; known: {', '.join(TYPES)}")
    return found


def stored_type(name: str) -> str:
    """Return ``name`` when ggml knows such a type, also one that is only copied; else CollabError."""
    if name not in GGMLQuantizationType.__members__:
        raise CollabError(f"unknown type {name!r}; this gguf-py does not know it")
    return name


def bits_per_weight(name: str) -> float:
    """Bits a weight of any ggml type."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return float(size * 8 / block)


def row_bytes(name: str, n: int) -> int:
    """Bytes of one row of ``n`` values; ValueError when n is not a multiple of the block."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    if n % block:
        raise ValueError(f"rows of {n} values are no multiple of {name}'s block of {block}")
    return int(n // block * size)


def tensor_bytes(name: str, shape: Sequence[int]) -> int:
    """Bytes of a whole tensor (numpy-order ``shape``), without padding."""
    return _tensor_bytes(name, tuple(shape))


@cache
def _tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """A search asks for the same few shapes hundreds of thousands of times."""
    return math.prod(shape[:-1]) * row_bytes(name, shape[-1])


def fallback(name: str, n: int) -> str:
    """Return ``name``, or the type that llama-quantize uses instead for rows of ``n`` values."""
    if n % TYPES[name].block == 0:
        return name
    other = _FALLBACK.get(name, name)
    return other if n % TYPES[other].block == 0 else "F16"


def without_imatrix(name: str) -> str:
    """Return ``name``, or the smallest larger 256-block that needs no importance vector.

    Embeddings have none (they are looked up, not multiplied): IQ1 and IQ2 become Q2_K there, as in
    llama-quantize's mixes, IQ3_XXS becomes IQ3_S.
    """
    if not TYPES[name].wants_imatrix:
        return name
    larger = [k for k in SUPER_BLOCK if not TYPES[k].wants_imatrix and bits_per_weight(k) > bits_per_weight(name)]
    return min(larger, key=bits_per_weight)
