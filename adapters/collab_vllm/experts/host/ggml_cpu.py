"""ggml's kernels for processors (ggml.h, ggml-cpu.h) through ctypes, on libraries that llama-cpp-python installs."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType

from collab_plugin.engines.ggml_structs import GgmlTensor, InitParams, same_layout
from collab_plugin.engines.program_settings import Setting, configured
from collab_plugin.errors import CollabError

LIBRARIES = Setting("ggml_libraries", "COLLAB_GGML")
LLAMA_CPP_FOLDER = "LLAMA_CPP_LIB_PATH"
"""llama-cpp-python's own variable, which other llama.cpp libraries are named with."""
NAMES = ("libggml-cpu.so", "libggml-cpu.dylib", "ggml-cpu.dll")

_POINTER, _SIZE, _INT, _TEXT, _INT64 = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int64,
)


class ComputePlan(ctypes.Structure):
    """ggml_cplan."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
        ("room", ctypes.c_char * 64),  # for members of later versions: it is returned by value
    )


class TypeTraits(ctypes.Structure):
    """ggml_type_traits: the members up to ``to_float``, which dequantizes rows that follow each other."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_version": (_TEXT, []),
    "ggml_init": (_POINTER, [InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead_custom": (_SIZE, [_SIZE, ctypes.c_bool]),
    "ggml_get_data": (_POINTER, [_POINTER]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, _INT64, _INT64]),
    "ggml_new_tensor_3d": (_POINTER, [_POINTER, _INT, _INT64, _INT64, _INT64]),
    "ggml_mul_mat_id": (_POINTER, [_POINTER, _POINTER, _POINTER, _POINTER]),
    "ggml_swiglu_split": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_new_graph_custom": (_POINTER, [_POINTER, _SIZE, ctypes.c_bool]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), [_INT]),
    "ggml_graph_plan": (ComputePlan, [_POINTER, _INT, _POINTER]),
    "ggml_graph_compute": (_INT, [_POINTER, ctypes.POINTER(ComputePlan)]),
}


class GgmlCpu:
    """The functions above as methods. ``folder``: where the libraries are; CollabError when they cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = next((folder / name for name in NAMES if (folder / name).exists()), None)
        if path is None:
            raise CollabError(f"{folder} holds no {NAMES[0]}: give the folder `lib` of an installed llama_cpp")
        try:
            # Its dependency libggml-base is found through the handle. OpenMP's threads are PyTorch's: both libraries
            # ask for libgomp.so.1, and the loader takes the one that is there already.
            library = ctypes.CDLL(str(path))
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        except (OSError, AttributeError) as error:
            raise CollabError(f"{path} cannot be used: {error}") from None
        self._check(path)

    def dequantize(self, blocks: torch.Tensor, type_name: str) -> torch.Tensor:
        """uint8[rows, bytes a row] in host memory, contiguous, to f32[rows, values]."""
        if type_name == "F32":
            return blocks.view(torch.float32)
        traits = self.ggml_get_type_traits(GGMLQuantizationType[type_name].value).contents
        values = blocks.shape[1] // traits.type_size * traits.blck_size
        out = torch.empty(blocks.shape[0], values)
        traits.to_float(blocks.data_ptr(), out.data_ptr(), out.numel())
        return out

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is not bound")

    def _check(self, path: Path) -> None:
        """CollabError when ggml's structures are others than those bound here."""
        same = same_layout(self.ggml_tensor_overhead())
        if same:
            context = self.ggml_init(InitParams(2**12, None, True))
            tensor = self.ggml_new_tensor_2d(context, 0, 1, 1)
            GgmlTensor.from_address(tensor).data = 4096
            same = self.ggml_get_data(tensor) == 4096
            self.ggml_free(context)
        q8_0 = self.ggml_get_type_traits(GGMLQuantizationType.Q8_0.value).contents
        same = same and (q8_0.type_name, q8_0.blck_size, q8_0.type_size) == (b"q8_0", 32, 34)
        if not same:
            raise CollabError(
                f"{path} is of another llama.cpp than the one that is bound (its structures differ): install "
                "llama-cpp-python==0.3.36"
            )


def ggml_folder() -> tuple[Path, str] | None:
    """Folder of ggml's libraries and who says so: ``COLLAB_GGML``, the settings, ``LLAMA_CPP_LIB_PATH``, or
    llama-cpp-python in this environment. None when there is none."""
    try:
        named = configured(LIBRARIES)
    except ModuleNotFoundError:  # collab-plugin without its dependencies, as children of another Python have it
        named = None
    if named is not None:
        return Path(named.value), named.source
    if other := os.environ.get(LLAMA_CPP_FOLDER):
        return Path(other), LLAMA_CPP_FOLDER
    spec = find_spec("llama_cpp")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "lib", "llama-cpp-python"
    return None


@cache
def ggml_cpu() -> GgmlCpu | None:
    """ggml's kernels in this process, None when no libraries are found.

    CollabError when those that were named cannot be used.
    """
    found = ggml_folder()
    if found is None:
        return None
    folder, source = found
    try:
        return GgmlCpu(folder)
    except CollabError as error:
        raise CollabError(f"{source}: {error}") from None


def how_computed() -> str:
    """What computes experts in host memory, for people."""
    ggml = ggml_cpu()
    if ggml is None:
        return (
            "no ggml libraries: experts are dequantized before they are used, which is slow on a processor; install "
            f"llama-cpp-python==0.3.36 here, or {LIBRARIES.how_to_give()} to the folder of another environment's"
        )
    return f"experts in host memory are computed by ggml {ggml.ggml_version().decode()} of {ggml.folder}"
