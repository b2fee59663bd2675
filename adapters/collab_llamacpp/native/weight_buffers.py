"""Where llama.cpp's loader puts weights: repacked, for AMX, or as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from collab_llamacpp.native.ggml import Ggml
from collab_plugin.engines.ggml_structs import GgmlTensor

WEIGHTS = 1
"""GGML_BACKEND_BUFFER_USAGE_WEIGHTS"""


def extra_buffer_types(lib: Ggml, device: int) -> Sequence[int]:
    """Buffer types that the backend offers beside its own: repacked weights, AMX."""
    function = lib.procedure(
        device, "ggml_backend_dev_get_extra_bufts", ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p
    )
    listed = function(device) if function is not None else None
    found: list[int] = []
    while listed and listed[len(found)]:
        found.append(listed[len(found)])
    return found


def weight_buffer_type(lib: Ggml, device: int, extra: Sequence[int], weights: int, node: int) -> int | None:
    """The first of ``extra`` that takes the tensor ``weights`` for the operation ``node``, else the device's own; None
    where the device declines it (llama-model-loader.cpp, weight_buft_supported)."""
    tensor = GgmlTensor.from_address(weights)
    for buffer_type in [*extra, lib.ggml_backend_dev_buffer_type(device)]:
        tensor.buffer = lib.ggml_backend_buft_alloc_buffer(buffer_type, 0)
        supported = lib.ggml_backend_dev_supports_op(device, node)
        lib.ggml_backend_buffer_free(tensor.buffer)
        tensor.buffer = None
        if supported:
            return int(buffer_type)
    return None
