"""Experts' matrices as the file will hold them: what is fitted should know what quantization left of gate and up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.plans.plan import Plan
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector

F32 = NDArray[np.float32]
ReadExpert = Callable[[str, int], F32]
"""(tensor, expert) -> f32[rows, columns]."""


def stored_experts(
    checkpoint: Checkpoint, plan: Plan, imatrix: ImportanceMatrix | None, kernels: Kernels | None
) -> ReadExpert:
    """Return a reader of ``checkpoint``'s experts, quantized to the plan's types and back."""

    def read(name: str, expert: int) -> F32:
        info, values = checkpoint.tensors[name], checkpoint.read(name, expert=expert)
        kind = plan.tensors[name].type
        if kernels is None or kind in ("F32", info.type.name):
            return values
        vector = importance_vector(info, expert, kind, imatrix)
        return kernels.dequantize(kernels.quantize(values, kind, vector), kind, values.shape[-1])

    return read
