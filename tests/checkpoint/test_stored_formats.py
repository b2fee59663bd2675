"""Every format that weights are stored in, against the library that writes it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from small_models.held_bytes import HeldBytes, held
from small_models.torch_python import torch_python

from collab_plugin.checkpoint.decode import decode
from collab_plugin.checkpoint.storage.microscaled import Nvfp4
from collab_plugin.checkpoint.storage.quantization import Quantization, quantization_of
from collab_plugin.checkpoint.storage.recognise import beside, matrix_of, without_effect
from collab_plugin.checkpoint.storage.stored_matrix import Matrix, floats
from collab_plugin.checkpoint.tensor_sources import FusedExperts
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.formats.safetensors_header import Stored, read_header

JOB = Path(__file__).with_name("stored_formats_job.py")
SHAPE = (48, 256)
# The GGUF type that holds the same codes, where there is one.
CASES = {
    "int4-g32": T.Q4_0, "int4-g128-f16": T.Q4_0, "int4-g32-zeros": None, "int4-channel": T.Q4_0, "int8-g128": T.Q8_0,
    "int8-channel": T.Q8_0, "fp8-channel": None, "fp8-tensor": None, "fp8-block": None, "fp8-block-e8m0": None,
    "mxfp4": T.MXFP4, "mxfp8": None, "nvfp4": T.NVFP4,
}  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Stored]:
    out = tmp_path_factory.mktemp("formats") / "formats.safetensors"
    done = subprocess.run(
        [torch_python("compressed_tensors"), str(JOB), str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return read_header(LocalFile(out))


def matrix(stored: Mapping[str, Stored], case: str) -> Matrix:
    return matrix_of(f"{case}.weight", SHAPE, stored, Quantization(((32, 128),), by_row=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case: str, stored: Mapping[str, Stored]) -> None:
    found, expected = matrix(stored, case), floats(stored[f"{case}.expected"])
    assert (found.shape, found.native) == (SHAPE, CASES[case])
    np.testing.assert_array_equal(found.values(), expected)
    np.testing.assert_array_equal(found.values(slice(5, 40)), expected[5:40])
    order = np.array([7, 3, 33])
    np.testing.assert_array_equal(found.values(order), expected[order])


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case, native in CASES.items() if native])
def test_codes_moved_to_a_gguf_type_are_the_same_values(case: str, stored: Mapping[str, Stored]) -> None:
    """The library rounds the product of a whole number and its scale to the scale's type; a GGUF does not round it."""
    found, expected = matrix(stored, case), floats(stored[f"{case}.expected"])
    assert found.native is not None
    moved = decode(found.native_rows(), found.native) * np.float32(found.factor if isinstance(found, Nvfp4) else 1)
    spacing = {T.BF16: 2.0**-8, T.F16: 2.0**-11}[found.type]
    assert (np.abs(moved - expected) <= np.abs(expected) * spacing).all()
    if case.startswith("int"):
        codes = np.rint(expected / np.repeat(_scales(found), SHAPE[1] // found.parts[1].shape[1], axis=1))
        np.testing.assert_array_equal(
            moved, codes * np.repeat(_scales(found), SHAPE[1] // found.parts[1].shape[1], axis=1)
        )
    elif case == "mxfp4":
        np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(found.native_rows(slice(5, 9)), found.native_rows()[5:9])


def _scales(found: Matrix) -> np.ndarray:
    return floats(found.parts[1])


@pytest.mark.slow
def test_every_tensor_is_known(stored: Mapping[str, Stored]) -> None:
    used = {part.name for case in CASES for part in matrix(stored, case).parts}
    left = {name for name in stored if not name.endswith(".expected")} - used
    assert left == {"fp8-tensor.input_scale"}
    assert all(beside(name, stored) or without_effect(name) for name in left)


def numbered(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> Stored:
    values = np.random.default_rng(seed).integers(100, 140, int(np.prod(shape)), np.uint8)
    return held(name, dtype, shape, values)


def test_mxfp4_experts_of_gpt_oss_in_turn() -> None:
    """[experts, rows, blocks, 16] with gate and up in turn: what is moved is what is read."""
    parts = {
        "e.gate_up_proj_blocks": numbered("e.gate_up_proj_blocks", "U8", (3, 8, 2, 16)),
        "e.gate_up_proj_scales": numbered("e.gate_up_proj_scales", "U8", (3, 8, 2), 1),
    }
    found = matrix_of("e.gate_up_proj", (3, 8, 64), parts, Quantization())
    assert (found.shape, found.native) == ((3, 8, 64), T.MXFP4)
    whole = found.values()
    up = FusedExperts(found, 1, 2, interleaved=True, transposed=False)
    assert (up.shape, up.type) == ((3, 4, 64), T.MXFP4)
    np.testing.assert_array_equal(up.values(None, None), whole[:, 1::2])
    np.testing.assert_array_equal(up.values(2, slice(1, 3)), whole[2, 3:6:2])
    np.testing.assert_array_equal(decode(up.raw(2, slice(1, 3)), T.MXFP4), whole[2, 3:6:2])


def test_mxfp4_experts_of_deepseek_v4() -> None:
    """Codes called weight, whole numbers by their dtype, with exponents called scale."""
    parts = {"w1.weight": numbered("w1.weight", "I8", (4, 32)), "w1.scale": numbered("w1.scale", "F8_E8M0", (4, 2), 1)}
    found = matrix_of("w1.weight", (4, 64), parts, Quantization())
    assert (found.shape, found.native, found.name) == ((4, 64), T.MXFP4, "w1.weight")
    same = {"w_packed": numbered("w_packed", "U8", (4, 32)), "w_scale": numbered("w_scale", "U8", (4, 2), 1)}
    np.testing.assert_array_equal(found.values(), matrix_of("w", (4, 64), same, Quantization()).values())
    assert beside("w1.scale", parts)


def test_a_scale_that_is_no_number_is_refused() -> None:
    scales = numbered("w_scale", "U8", (4, 2))
    assert isinstance(scales.file, HeldBytes)
    scales.file.data[3] = 255
    parts = {"w_packed": numbered("w_packed", "U8", (4, 32)), "w_scale": scales}
    with pytest.raises(CollabError, match="w_scale holds scales that are no number"):
        matrix_of("w", (4, 64), parts, Quantization()).native_rows()


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"quant_method": "gptq"}, "quantized as gptq"),
        ({"quant_method": "compressed-tensors"}, "without config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {}, "transform_config": {"u": 1}}, "are rotated"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"block_structure": [0, 1]}}}},
            "block_structure",
        ),
    ],
)
def test_what_is_not_read_is_refused(told: dict[str, object], says: str) -> None:
    with pytest.raises(CollabError, match=says):
        quantization_of("folder", {"quantization_config": told})


PACKED = {"w_packed": ("I32", (4, 8)), "w_scale": ("F16", (4, 2)), "w_shape": ("I64", (2,))}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"w_packed": ("I32", (4, 7))}, "has 7 words for 64 values"),
        ({"w_packed": ("F32", (4, 8))}, "is no MXFP4"),
        ({"w_scale": ("F16", (3, 2))}, "scales of each of 4 rows"),
        ({"w_scale": ("F16", (4, 3))}, "3 scales for 64 values, which they do not divide"),
        ({"w_zero_point": ("I32", (1, 3))}, "w_zero_point has shape"),
        ({"w_g_idx": ("I32", (63,))}, "w_g_idx has shape"),
        ({"w_scale": None}, "w_scale is not stored beside w_packed"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, tuple[str, tuple[int, ...]] | None], says: str) -> None:
    parts = {}
    for name, told in (PACKED | change).items():
        if told is not None:
            size = {"I32": 4, "F16": 2, "F32": 4, "I64": 8}[told[0]]
            parts[name] = held(name, told[0], told[1], np.zeros(int(np.prod(told[1])) * size, np.uint8))
    with pytest.raises(CollabError, match=says):
        matrix_of("w", (4, 64), parts, Quantization())


def test_columns_in_another_order_have_the_scale_of_their_group() -> None:
    order = np.array([1, 0] * 32, "<i4")
    scales = np.arange(1, 9, dtype="<f2").reshape(4, 2)
    parts = {
        "w_packed": held("w_packed", "I32", (4, 8), np.full(128, 0x99, np.uint8)),  # every number is 1
        "w_scale": held("w_scale", "F16", (4, 2), scales.reshape(-1).view(np.uint8)),
        "w_g_idx": held("w_g_idx", "I32", (64,), order.view(np.uint8)),
    }
    found = matrix_of("w", (4, 64), parts, Quantization())
    assert found.native is None
    np.testing.assert_array_equal(found.values(), scales[:, order].astype(np.float32))
