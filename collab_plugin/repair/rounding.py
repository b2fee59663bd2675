"""Experts' matrices as the file will hold them: what is fitted should know what quantization leaves of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.plans.plan import Plan
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Rounding:
    """How ``plan`` quantizes the experts of ``checkpoint``. ``kernels``: None where nothing is quantized."""

    checkpoint: Checkpoint
    plan: Plan
    imatrix: ImportanceMatrix | None
    kernels: Kernels | None

    def quantizes(self, name: str) -> bool:
        """True when the type of ``name`` becomes one of blocks, whose kernel chooses the values."""
        kind = self.plan.tensors[name].type
        plain = ("F32", "F16", "BF16", self.checkpoint.tensors[name].type.name)
        return self.kernels is not None and kind not in plain

    def rounded(self, name: str, expert: int, values: F32) -> F32:
        """Rows ``values`` f32[r, n] of ``expert`` as the file gives them back."""
        kind = self.plan.tensors[name].type
        if self.kernels is None or kind in ("F32", self.checkpoint.tensors[name].type.name):
            return values
        vector = importance_vector(self.checkpoint.tensors[name], expert, kind, self.imatrix)
        data = self.kernels.quantize(np.ascontiguousarray(values, np.float32), kind, vector)
        return self.kernels.dequantize(data, kind, values.shape[-1])
