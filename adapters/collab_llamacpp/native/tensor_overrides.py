"""Tensors into memories of one's choice: llama_model_params.tensor_buft_overrides, which the binding leaves alone."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from collab_llamacpp.native.ggml import ggml

_GPU, _PROCESSOR = 1, 0  # ggml_backend_dev_type


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override (llama.h)."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


@dataclass(frozen=True)
class TensorOverrides:
    """Regular expressions of tensor names; the first that matches counts (llama-model-loader.cpp:1235). ``on_gpu`` is
    for the first GPU and left out where there is none. What none matches goes to the GPUs, if there are any."""

    on_processor: tuple[str, ...]
    on_gpu: tuple[str, ...]

    def apply(self, params: Any) -> Any:
        """Set it in llama_model_params; what is returned must live as long as the load."""
        lib = ggml()
        devices = {kind: [d for d in lib.devices() if lib.ggml_backend_dev_type(d) == kind] for kind in (0, 1)}
        processor = lib.ggml_backend_dev_buffer_type(devices[_PROCESSOR][0])
        found = [(pattern, processor) for pattern in self.on_processor]
        if devices[_GPU]:
            gpu = lib.ggml_backend_dev_buffer_type(devices[_GPU][0])
            found += [(pattern, gpu) for pattern in self.on_gpu]
        listed = (_Override * (len(found) + 1))(*(_Override(pattern.encode(), buft) for pattern, buft in found))
        params.tensor_buft_overrides = ctypes.addressof(listed)
        params.n_gpu_layers = -1 if devices[_GPU] else 0
        return listed
