"""The scales of stored blocks: the only part of a quantized tensor that can be NaN or infinite."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

# Bytes into a block where its float16 scales lie (ggml/src/ggml-common.h, the structs block_*).
_F16_AT = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def scales_are_finite(raw: NDArray[np.uint8], kind: GGMLQuantizationType) -> bool:
    """Whether every block of ``raw`` (uint8[..., row bytes]) has finite scales; True for types without known ones."""
    blocks = np.ascontiguousarray(raw).reshape(-1, GGML_QUANT_SIZES[kind][1])
    if kind == GGMLQuantizationType.MXFP4:
        return bool((blocks[:, 0] != 0xFF).all())  # E8M0 has one code for NaN
    if kind == GGMLQuantizationType.NVFP4:
        return bool((blocks[:, :4] < 0x7F).all())  # E4M3 has one for each sign, and these scales have no sign
    if kind == GGMLQuantizationType.IQ1_M:
        return _finite(_of_iq1_m(blocks))
    return all(_finite(_every_block(blocks, at)) for at in _F16_AT.get(kind.name, ()))


def _every_block(blocks: NDArray[np.uint8], at: int) -> NDArray[np.uint16]:
    """The two bytes from ``at`` on of each block, uint16[blocks], where they lie."""
    return np.ndarray(len(blocks), "<u2", blocks.data, at, blocks.strides[:1])


def _of_iq1_m(blocks: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """One float16 a block, whose four bits lie in front of each of its four words of small scales."""
    words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
    scales: NDArray[np.uint16] = np.bitwise_or.reduce([words[:, i] >> 12 << 4 * i for i in range(4)]).astype(np.uint16)
    return scales


def _finite(halves: NDArray[np.uint16]) -> bool:
    return bool(((halves & 0x7C00) != 0x7C00).all())
