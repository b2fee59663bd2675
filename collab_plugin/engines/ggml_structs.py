"""ggml's structures that more than one adapter binds through ctypes (ggml.h of llama-cpp-python 0.3.36's llama.cpp).

No library is loaded here: each adapter finds its own, and checks it with `same_layout`.
"""

from __future__ import annotations

import ctypes

_OBJECT = 32
"""Bytes of the ggml_object before each tensor, which ggml_tensor_overhead counts."""


class InitParams(ctypes.Structure):
    """ggml_init_params (ggml.h:677)."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class GgmlTensor(ctypes.Structure):
    """ggml_tensor (ggml.h:685)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


def same_layout(tensor_overhead: int) -> bool:
    """Whether a library whose ggml_tensor_overhead() is this has tensors of the size bound here."""
    return tensor_overhead == _OBJECT + ctypes.sizeof(GgmlTensor)
