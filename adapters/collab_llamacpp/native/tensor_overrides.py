"""Tensors into memories of one's choice: llama_model_params.tensor_buft_overrides, which the binding leaves alone."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from collab_llamacpp.native.ggml import ggml
from collab_llamacpp.native.model import DeviceChoice

_GPU, _PROCESSOR = 1, 0  # ggml_backend_dev_type


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override (llama.h)."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


@dataclass(frozen=True)
class TensorOverrides:
    """Regular expressions of tensor names; the first that matches counts (llama-model-loader.cpp:1235). ``devices``:
    the GPUs to use, None: all. ``on_gpu`` is for the first of them and left out where there is none. What no expression
    matches goes to the GPUs, if there are any."""

    on_processor: tuple[str, ...]
    on_gpu: tuple[str, ...]
    devices: DeviceChoice | None = None

    def apply(self, params: Any) -> Any:
        """Set it in llama_model_params; what is returned must live as long as the load."""
        lib = ggml()
        here = {kind: [d for d in lib.devices() if lib.ggml_backend_dev_type(d) == kind] for kind in (_PROCESSOR, _GPU)}
        gpus = here[_GPU] if self.devices is None else self.devices.devices
        params.n_gpu_layers = -1 if gpus else 0
        kept = None if self.devices is None else self.devices.apply(params)
        processor = lib.ggml_backend_dev_buffer_type(here[_PROCESSOR][0])
        found = [(pattern, processor) for pattern in self.on_processor]
        if gpus:
            gpu = lib.ggml_backend_dev_buffer_type(gpus[0])
            found += [(pattern, gpu) for pattern in self.on_gpu]
        listed = (_Override * (len(found) + 1))(*(_Override(pattern.encode(), buft) for pattern, buft in found))
        params.tensor_buft_overrides = ctypes.addressof(listed)
        return kept, listed
