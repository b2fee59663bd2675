"""ggml's kernels behind guards: wrong input is an exception, never an abort."""

from __future__ import annotations

import numpy as np
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from gguf import GGMLQuantizationType, quants

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, row_bytes

KERNELS = GgmlKernels()
RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((4, 512)).astype(np.float32)
IMATRIX = (RNG.gamma(1.0, 1.0, 512) + 0.05).astype(np.float32)
SLOW = [pytest.param(n, marks=pytest.mark.slow) if n.startswith(("IQ1", "IQ2")) else n for n in TYPES]


@pytest.mark.native
@pytest.mark.parametrize("name", SLOW)
def test_dequantize_agrees_with_gguf_py(name: str) -> None:
    data = KERNELS.quantize(VALUES, name, IMATRIX)
    assert data.shape == (4, row_bytes(name, 512))
    theirs = quants.dequantize(data, GGMLQuantizationType[name]).reshape(4, 512)
    np.testing.assert_allclose(KERNELS.dequantize(data, name, 512), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.native
def test_needed_imatrix_is_what_ggml_says() -> None:
    assert {n for n in TYPES if KERNELS.requires_imatrix(n)} == {n for n, info in TYPES.items() if info.needs_imatrix}


def test_missing_imatrix_is_refused() -> None:
    with pytest.raises(ValueError, match="importance"):
        KERNELS.quantize(VALUES, "IQ2_XXS")


@pytest.mark.parametrize("shape", [(511,), (1024,), (1, 512)])
def test_imatrix_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="importance"):
        KERNELS.quantize(VALUES, "Q4_K", np.ones(shape, np.float32))


def test_row_width_off_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        KERNELS.quantize(VALUES[:, :300], "Q4_K")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_imatrix_that_is_not_finite_is_refused(bad: float) -> None:
    broken = IMATRIX.copy()
    broken[3] = bad
    with pytest.raises(ValueError, match="finite"):
        KERNELS.quantize(VALUES, "Q4_K", broken)


@pytest.mark.native
def test_strided_input_is_quantized_as_its_copy() -> None:
    wide = np.repeat(VALUES, 2, axis=1)
    assert np.array_equal(KERNELS.quantize(wide[:, ::2], "Q4_K"), KERNELS.quantize(VALUES, "Q4_K"))


def test_bytes_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        KERNELS.dequantize(np.zeros((1, 100), np.uint8), "Q4_K", 512)


@pytest.mark.parametrize("value", [1e20, -3e38, np.inf, np.nan])
@pytest.mark.parametrize("kind", ["IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_values_that_end_the_process_are_refused(kind: str, value: float) -> None:
    values = np.ones((2, 256), np.float32)
    values[1, 7] = value
    with pytest.raises(CollabError, match=f"cannot become {kind}"):
        KERNELS.quantize(values, kind, np.ones(256, np.float32))
