"""The mutants are wrong in the way they say, and in no other."""

from __future__ import annotations

import numpy as np
import pytest
from collab_conformance.mutants.scale import scalable, scaled
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from collab_plugin.manager import first_kernels
from collab_plugin.quant.types import TYPES


@pytest.mark.parametrize("name", [name for name in TYPES if scalable(GGMLQuantizationType[name])])
def test_a_scaled_tensor_is_the_tensor_scaled(name: str) -> None:
    """To half a unit of the half-precision scale; what the block says of its values stays."""
    values = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    kernels, kind = first_kernels(), GGMLQuantizationType[name]
    data = kernels.quantize(values, name, np.ones(256, np.float32) if TYPES[name].needs_imatrix else None)
    before, after = (dequantize(x, kind).astype(np.float64) for x in (data, scaled(data, kind, 1.01)))
    slope = (before * after).sum() / np.square(before).sum()
    assert slope == pytest.approx(1.01, abs=5e-4)
    assert np.abs(after - 1.01 * before).max() <= 2e-3 * np.abs(before).max()


def test_types_without_a_plain_scale_are_told() -> None:
    assert [name for name in TYPES if not scalable(GGMLQuantizationType[name])] == ["IQ1_M", "BF16"]
