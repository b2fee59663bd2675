from __future__ import annotations

import ctypes

import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from gguf import GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import TensorInfo, quantizable
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, fallback, row_bytes, tensor_bytes, type_info
from collab_plugin.formats.tensor_names import role_of

ASKED = [
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "IQ4_NL", "Q3_K", "IQ3_S", "IQ3_XXS",
    "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
]  # fmt: skip


def test_every_promised_type_is_offered() -> None:
    assert set(ASKED) <= set(TYPES)


@pytest.mark.native
@pytest.mark.parametrize("name", list(TYPES))
def test_row_bytes_are_ggml_row_size(name: str) -> None:
    lib = GgmlKernels()._lib
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    lib.ggml_row_size.restype = ctypes.c_size_t
    for n in (256, 7168):
        assert row_bytes(name, n) == lib.ggml_row_size(GGMLQuantizationType[name].value, n)
    assert tensor_bytes(name, (3, 5, 256)) == 15 * row_bytes(name, 256)


def test_unknown_type_names_the_known() -> None:
    with pytest.raises(CollabError, match="IQ2_XXS") as error:
        type_info("Q9_Z")
    assert "\n" not in str(error.value)


def test_row_width_off_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        row_bytes("Q4_K", 300)


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [
        ("Q4_K", 256, "Q4_K"), ("Q4_K", 96, "Q5_0"), ("Q5_K", 96, "Q5_1"), ("Q6_K", 96, "Q8_0"),
        ("Q2_K", 96, "Q4_0"), ("IQ1_S", 96, "IQ4_NL"), ("Q4_K", 100, "F16"), ("Q8_0", 100, "F16"),
        ("F32", 100, "F32"),
    ],
)  # fmt: skip
def test_fallback_is_llama_quantizes(name: str, n: int, expected: str) -> None:
    assert fallback(name, n) == expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.ffn_down_exps.weight", (8, 256, 256), True),
        ("blk.0.attn_q.weight", (256, 256), True),
        ("token_embd.weight", (288, 256), True),
        ("output.weight", (288, 256), True),
        ("blk.0.ffn_gate_inp.weight", (8, 256), False),
        ("blk.0.exp_probs_b.bias", (8,), False),
        ("blk.0.attn_norm.weight", (256,), False),
        ("blk.0.ffn_gate_exps.bias", (8, 256), False),
        ("blk.0.ssm_conv1d.weight", (256, 4), False),
        ("position_embd.weight", (64, 256), False),
    ],
)
def test_quantizable(name: str, shape: tuple[int, ...], expected: bool) -> None:
    info = TensorInfo(name, shape, GGMLQuantizationType.F32, 0, role_of(name), 0)
    assert quantizable(info) is expected
