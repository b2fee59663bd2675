"""ggml's own quantization kernels, through ctypes on the library that llama-cpp-python installs."""

from __future__ import annotations

import ctypes
import threading
from functools import cached_property
from importlib.metadata import version

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from collab_llamacpp.native.libraries import library, library_folder
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, row_bytes, type_info
from collab_plugin.quantize.kernels import Bytes, Kernels

F32 = NDArray[np.float32]
_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """ggml_type_traits (ggml.h:2890): the fields up to ``to_float``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


# Types with a grid of their own, whose neighbours take seconds to find (ggml-quants.c, iq2xs_init_impl); the IQ1 types
# share one. ggml_quantize_init builds one at a time, and nothing in them needs that.
_GRIDS = {"IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_S", "IQ1_S": "IQ1", "IQ1_M": "IQ1"}
_LOCKS = {grid: threading.Lock() for grid in _GRIDS.values()}
"""Of the process, as the grids are."""
_MOST = 1e8
"""Of a weight. From 1e15 on, and at NaN, kernels of some IQ types find no point of their grid and end the process; the
weights of models are below 1e4."""


class GgmlKernels(Kernels):
    """`Kernels` of libggml-base. ctypes releases the GIL during each call."""

    name = "ggml"

    def __init__(self) -> None:
        self._prepared: set[str] = set()
        self._lock = threading.Lock()

    @cached_property
    def _lib(self) -> ctypes.CDLL:
        lib = ctypes.CDLL(str(library("ggml-base", library_folder())))
        lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        lib.ggml_quantize_init.argtypes = [ctypes.c_int]
        lib.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
        lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
        lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        lib.ggml_version.restype = ctypes.c_char_p
        return lib

    def version(self) -> str:
        return f"ggml {self._lib.ggml_version().decode()} (llama-cpp-python {version('llama-cpp-python')})"

    def types(self) -> tuple[str, ...]:
        return tuple(TYPES)

    def requires_imatrix(self, type_name: str) -> bool:
        return bool(self._lib.ggml_quantize_requires_imatrix(GGMLQuantizationType[type_name].value))

    def prepare(self, type_name: str) -> None:
        if type_name in self._prepared:
            return
        kind = GGMLQuantizationType[type_name].value
        build = getattr(self._lib, "iq2xs_init_impl", None) if type_name in _GRIDS else None
        if build is None:
            with self._lock:
                self._lib.ggml_quantize_init(kind)
        else:
            with _LOCKS[_GRIDS[type_name]]:
                build(kind)
        self._prepared.add(type_name)

    def quantize(self, values: F32, type_name: str, imatrix: F32 | None = None) -> Bytes:
        info = type_info(type_name)
        if values.ndim != 2:
            raise ValueError(f"quantize wants a matrix, got shape {values.shape}")
        rows, n = values.shape
        out = np.empty((rows, row_bytes(info.name, n)), np.uint8)
        if info.needs_imatrix and imatrix is None:
            raise ValueError(f"{info.name} needs an importance vector")
        pointer = None
        if imatrix is not None:
            if imatrix.shape != (n,):
                raise ValueError(f"an importance vector of {imatrix.shape} for rows of {n}")
            imatrix = np.ascontiguousarray(imatrix, np.float32)
            if not np.isfinite(imatrix).all():
                raise ValueError("the importance vector holds values that are not finite")
            pointer = imatrix.ctypes.data
        if info.name.startswith("IQ") and values.size and not max(values.max(), -values.min()) <= _MOST:
            raise CollabError(
                f"weights beyond {_MOST:.0e} or NaN cannot become {info.name}: the model or its samples are damaged"
            )
        self.prepare(info.name)
        values = np.ascontiguousarray(values, np.float32)
        kind = GGMLQuantizationType[info.name].value
        written = self._lib.ggml_quantize_chunk(kind, values.ctypes.data, out.ctypes.data, 0, rows, n, pointer)
        if written != out.nbytes:
            raise RuntimeError(f"ggml wrote {written} bytes of {out.nbytes} ({info.name})")
        return out

    def dequantize(self, data: Bytes, type_name: str, n: int) -> F32:
        kind = GGMLQuantizationType[type_name]
        if type_name == "F32":
            return np.ascontiguousarray(data).view(np.float32).reshape(-1, n)
        if data.ndim != 2 or data.shape[1] != row_bytes(type_name, n):
            raise ValueError(f"{data.shape} bytes are no {type_name} rows of {n}")
        traits = self._lib.ggml_get_type_traits(kind.value).contents
        if traits.type_size * (n // traits.blck_size) != data.shape[1] or not traits.to_float:
            raise RuntimeError(f"ggml_type_traits has another layout than was bound ({type_name})")
        data = np.ascontiguousarray(data)
        out = np.empty((len(data), n), np.float32)
        traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
        return out
