"""Rows of a tensor at a type, as files hold them, or an error for what the type cannot hold."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.errors import CollabError
from collab_plugin.formats.block_scales import scales_are_finite
from collab_plugin.quantize.kernels import F32, Bytes, Kernels


def rows_at_type(values: F32, info: TensorInfo, kind: str, vector: F32 | None, kernels: Kernels | None) -> Bytes:
    """``values`` f32[rows, columns] of the tensor ``info`` at ``kind``, uint8[rows, bytes a row]; ``vector``
    f32[columns]: their importance. CollabError for what the type cannot hold."""
    if kind == "F32":
        return np.ascontiguousarray(values).view(np.uint8)
    if kernels is None:
        raise CollabError("no quantization kernels: pip install 'collab-plugin[llamacpp]'")
    made = kernels.quantize(values, kind, vector)
    if not scales_are_finite(made, GGMLQuantizationType[kind]):
        raise CollabError(f"{info.name} became values that are no numbers at {kind}; plan another type (`ceilings`)")
    return made
