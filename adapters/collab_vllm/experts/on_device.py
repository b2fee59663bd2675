"""All experts of a layer on the device, dequantized in PyTorch when a token chose them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from collab_vllm.experts.ggml.dequantize import dequantize
from collab_vllm.experts.grouped import grouped_experts


class DeviceExperts:
    """``matrices``: gate, up and down, uint8[experts, rows, bytes a row] at ``types``."""

    def __init__(self, types: Sequence[str], matrices: Sequence[Tensor]) -> None:
        self._types, self._matrices = types, matrices
        self._of(0, torch.float32)  # compiles, so that no request waits for it

    def compute(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs, [tokens, wide]; ids below 0 are other ranks'."""
        return grouped_experts(x, weights, ids, lambda expert: self._of(expert, x.dtype))

    def _of(self, expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return dequantized([matrix[expert] for matrix in self._matrices], self._types, dtype)


def dequantized(blocks: Sequence[Tensor], types: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, up and down of one expert."""
    gate, up, down = (dequantize(part, kind).to(dtype) for part, kind in zip(blocks, types, strict=True))
    return gate, up, down
