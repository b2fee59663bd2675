"""Single products as the option ``artifact`` computes them: blocks dequantized on the device, then multiplied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from collab_plugin import KernelBench
from collab_plugin.engines.target import F32, I32, Bytes
from collab_plugin.formats.ggml_types import TYPES
from collab_vllm.experts.ggml.dequantize import SUPPORTED, dequantize


class VllmBench(KernelBench):
    """``device`` as PyTorch names it."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def types(self) -> Sequence[str]:
        return [name for name in TYPES if name in SUPPORTED]

    def mul_mat(self, type_name: str, weights: Bytes, x: F32) -> F32:
        product = functional.linear(self._on_device(x), dequantize(self._on_device(weights), type_name))
        return np.asarray(product.cpu().numpy())

    def mul_mat_id(self, type_name: str, weights: Bytes, x: F32, ids: I32) -> F32:
        rows, blocks = self._on_device(x), self._on_device(weights)
        out = torch.empty(*ids.shape, weights.shape[1], device=self._device)
        chosen = self._on_device(ids)
        for expert in np.unique(ids):
            tokens, places = (chosen == int(expert)).nonzero(as_tuple=True)
            out[tokens, places] = functional.linear(rows[tokens], dequantize(blocks[int(expert)], type_name))
        return np.asarray(out.cpu().numpy())

    def _on_device(self, values: F32 | I32 | Bytes) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
