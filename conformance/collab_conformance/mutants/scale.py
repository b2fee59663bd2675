"""Every scale of a tensor times a factor, in the stored blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import Bytes

# Where a block keeps its half-precision scale, and its minimum where it has one (ggml-common.h). IQ1_M spreads its
# scale over the top bits of four others, and MXFP4 has powers of two only.
_PLACES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS"), (0,)),
    **dict.fromkeys(("IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
_FLOATS = {"F32": np.float32, "F16": np.float16}


def scalable(kind: GGMLQuantizationType) -> bool:
    """Whether `scaled` knows the type."""
    return kind.name in _PLACES or kind.name in _FLOATS


def scaled(data: Bytes, kind: GGMLQuantizationType, factor: float) -> Bytes:
    """``data`` uint8[..., bytes a row] with every scale times ``factor``, rounded as it is stored."""
    flat = np.ascontiguousarray(data).reshape(-1).copy()
    if kind.name in _FLOATS:
        values = flat.view(_FLOATS[kind.name])
        values[:] = (values.astype(np.float64) * factor).astype(values.dtype)
        return flat.reshape(data.shape)
    blocks = flat.reshape(-1, GGML_QUANT_SIZES[kind][1])
    for place in _PLACES[kind.name]:
        scales = np.ascontiguousarray(blocks[:, place : place + 2]).view(np.float16).astype(np.float64)
        blocks[:, place : place + 2] = (scales * factor).astype(np.float16).view(np.uint8)
    return flat.reshape(data.shape)
