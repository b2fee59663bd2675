"""What a tensor costs at a type: of its own error, and of its inputs, which processors round for quantized tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.planning.repaired_errors import NONE, RepairedErrors
from collab_plugin.quantize.rounded_inputs import block_of_inputs
from collab_plugin.stats.stats import InputRounding


@dataclass(frozen=True)
class Costs:
    """``weights``: nats a unit of relative error, by tensor. ``rounding``: what calibration saw of the inputs of
    ``tensors``. ``repaired``: what repair leaves of errors."""

    weights: Mapping[str, float]
    tensors: Mapping[str, TensorInfo]
    rounding: Mapping[str, InputRounding]
    repaired: RepairedErrors = NONE

    def of(self, name: str, kind: str, error: float) -> float:
        """Nats of the tensor at the type ``kind``, whose relative error is ``error``.

        An error of inputs, relative to them, moves the product as much as one of the matrix: Σ_ij W_ij² E[δ_j²] is
        E[‖δ‖²] / E[‖x‖²] of Σ_ij w_j W_ij², where a column's weights do not know its inputs (0.81 to 1.02 of it, by
        tensor of tiny-deepseek-v3).
        """
        return self.weights[name] * (error * self.repaired.left(name, kind) + self._inputs(name, kind))

    def without_repair(self) -> Costs:
        """Those of files that others make."""
        return replace(self, repaired=NONE)

    def _inputs(self, name: str, kind: str) -> float:
        """Relative squared error of the inputs; none where the original rounds them alike."""
        if name not in self.rounding or kind == self.tensors[name].type.name:
            return 0.0
        return self.rounding[name].lost(block_of_inputs(kind))
