"""Experts' matrices as the file will hold them: what is fitted should know what quantization leaves of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.plans.plan import Plan
from collab_plugin.quantize.kernels import Bytes, Kernels
from collab_plugin.quantize.rows_at_type import rows_at_type
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

    def kind(self, name: str) -> str:
        """The type of the file's tensor ``name``; F32 where nothing is quantized."""
        return "F32" if self.kernels is None else self.plan.tensors[name].type

    def stored(self, name: str, expert: int, values: F32) -> Bytes:
        """Rows ``values`` f32[r, n] of ``expert`` as the file holds them, uint8[r, bytes a row]. CollabError for what
        the type cannot hold."""
        info, kind = self.checkpoint.tensors[name], self.kind(name)
        vector = None if kind == "F32" else importance_vector(info, expert, kind, self.imatrix)
        return rows_at_type(np.ascontiguousarray(values, np.float32), info, kind, vector, self.kernels)

    def given_back(self, name: str, data: Bytes) -> F32:
        """`stored` rows as they are read, f32[r, n]."""
        kind = self.kind(name)
        if kind == "F32" or self.kernels is None:
            return data.view(np.float32)
        return self.kernels.dequantize(data, kind, self.checkpoint.tensors[name].shape[-1])

    def rounded(self, name: str, expert: int, values: F32) -> F32:
        """Rows ``values`` f32[r, n] of ``expert`` as the file gives them back."""
        if self.kind(name) in ("F32", self.checkpoint.tensors[name].type.name):
            return values
        return self.given_back(name, self.stored(name, expert, values))
