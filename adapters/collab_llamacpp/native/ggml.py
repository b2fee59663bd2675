"""ggml's public backend interface (ggml.h, ggml-backend.h, ggml-alloc.h) through ctypes."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from collab_llamacpp.native.libraries import library, library_folder
from collab_plugin.engines.ggml_structs import InitParams, same_layout
from collab_plugin.errors import CollabError

_POINTER, _SIZE, _INT, _TEXT, _INT64 = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int64,
)


_BASE: dict[str, tuple[Any, list[Any]]] = {
    "ggml_version": (_TEXT, []),
    "ggml_commit": (_TEXT, []),
    "ggml_op_name": (_TEXT, [_INT]),
    "ggml_init": (_POINTER, [InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead": (_SIZE, []),
    "ggml_nbytes": (_SIZE, [_POINTER]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, _INT64, _INT64]),
    "ggml_new_tensor_3d": (_POINTER, [_POINTER, _INT, _INT64, _INT64, _INT64]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_mul_mat_id": (_POINTER, [_POINTER, _POINTER, _POINTER, _POINTER]),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_buft_name": (_TEXT, [_POINTER]),
    "ggml_backend_buft_alloc_buffer": (_POINTER, [_POINTER, _SIZE]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_buffer_set_usage": (None, [_POINTER, _INT]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
    "ggml_backend_free": (None, [_POINTER]),
    "ggml_backend_dev_name": (_TEXT, [_POINTER]),
    "ggml_backend_dev_description": (_TEXT, [_POINTER]),
    "ggml_backend_dev_memory": (None, [_POINTER, ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)]),
    "ggml_backend_dev_type": (_INT, [_POINTER]),
    "ggml_backend_dev_backend_reg": (_POINTER, [_POINTER]),
    "ggml_backend_dev_init": (_POINTER, [_POINTER, _TEXT]),
    "ggml_backend_dev_buffer_type": (_POINTER, [_POINTER]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_POINTER, _POINTER]),
    "ggml_backend_reg_name": (_TEXT, [_POINTER]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, _TEXT]),
}
_REGISTRY: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_reg_count": (_SIZE, []),
    "ggml_backend_reg_get": (_POINTER, [_SIZE]),
    "ggml_backend_dev_count": (_SIZE, []),
    "ggml_backend_dev_get": (_POINTER, [_SIZE]),
    "ggml_backend_load": (_POINTER, [_TEXT]),
}


class Ggml:
    """The functions above as methods: ``lib.ggml_nbytes(tensor)``."""

    def __init__(self, folder: Path) -> None:
        try:
            base, registry = _handles(folder)
            for handle, signatures in ((base, _BASE), (registry, _REGISTRY)):
                for name, (result, arguments) in signatures.items():
                    function = getattr(handle, name)
                    function.restype, function.argtypes = result, arguments
                    setattr(self, name, function)
        except (OSError, AttributeError) as error:
            raise CollabError(f"{folder} holds no llama.cpp that llama-cpp-python can use: {error}") from None
        if not same_layout(self.ggml_tensor_overhead()):
            raise CollabError(
                f"{folder} holds another llama.cpp than llama-cpp-python 0.3.36 binds: ggml_tensor differs"
            )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is not bound")

    def devices(self) -> list[int]:
        """Every registered ggml_backend_dev_t."""
        return [self.ggml_backend_dev_get(i) for i in range(self.ggml_backend_dev_count())]

    def backends(self) -> list[str]:
        """Names of the registered backends, with devices or without."""
        found = (self.ggml_backend_reg_get(i) for i in range(self.ggml_backend_reg_count()))
        return [self.ggml_backend_reg_name(reg).decode() for reg in found]

    def backend_of(self, device: int) -> str:
        """Name of the backend that a device belongs to: "CPU", "Vulkan", "MTL"."""
        return str(self.ggml_backend_reg_name(self.ggml_backend_dev_backend_reg(device)).decode())

    def procedure(self, device: int, name: str, result: Any, *arguments: Any) -> Any:
        """A function that a backend offers by name only; None when it has none."""
        address = self.ggml_backend_reg_get_proc_address(self.ggml_backend_dev_backend_reg(device), name.encode())
        return ctypes.CFUNCTYPE(result, *arguments)(address) if address else None


def _handles(folder: Path) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """Handles on ggml-base and ggml as libllama has loaded them.

    A wheel holds copies where symbolic links were (libggml.so beside libggml.so.0), and opening the other
    copy would give a second registry. Symbols of a handle's dependencies are found through it, but on Windows,
    where a loaded library is known by its file name.
    """
    if os.name == "nt":
        ctypes.CDLL(str(library("llama", folder)), winmode=0)
        return ctypes.CDLL(str(library("ggml-base", folder))), ctypes.CDLL(str(library("ggml", folder)))
    handle = ctypes.CDLL(str(library("llama", folder)))
    return handle, handle


@lru_cache(maxsize=1)
def ggml() -> Ggml:
    """The ggml that `import llama_cpp` uses in this process."""
    return Ggml(library_folder())
