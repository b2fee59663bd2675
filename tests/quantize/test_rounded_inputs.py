"""Inputs are rounded as ggml rounds them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from collab_llamacpp.native.libraries import library, library_folder

from collab_plugin.formats.ggml_types import QUANTIZED
from collab_plugin.quantize.rounded_inputs import BLOCKS, block_of_inputs, lost_by_rounding, share_lost


def rows(outlier: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    values[:, 3] *= outlier
    return values


@pytest.mark.parametrize("block", BLOCKS)
def test_no_value_moves_by_more_than_half_a_step(block: int) -> None:
    x = rows(20)
    blocks = x.reshape(6, -1, block)
    step = np.abs(blocks).max(-1, keepdims=True) / 127
    lost = lost_by_rounding(x, block).reshape(blocks.shape)
    assert (np.abs(lost) <= step / 2 * (1 + 1e-4)).all()
    assert np.abs(lost).max() > step.min() / 4, "something is lost"
    largest = np.abs(blocks).argmax(-1)[..., None]
    assert np.abs(np.take_along_axis(lost, largest, -1)).max() < 1e-4, "the largest value is kept"


def test_an_outlier_costs_its_whole_block() -> None:
    alike, one_loud = rows(1), rows(50)
    for wide, narrow in zip(share_lost(alike, 256), share_lost(alike, 32), strict=True):
        assert 1e-5 < narrow < wide < 2e-4
    assert (share_lost(one_loud, 256) > 2 * share_lost(one_loud, 32)).all()


def test_rows_of_zeros_lose_nothing() -> None:
    assert np.array_equal(share_lost(np.zeros((2, 256), np.float32), 256), np.zeros(2))


def test_every_type_has_a_block() -> None:
    assert {block_of_inputs(kind) for kind in QUANTIZED} == set(BLOCKS)
    assert [block_of_inputs(kind) for kind in ("F32", "F16", "BF16", "Q8_0", "IQ4_NL", "Q4_K")] == [
        0,
        0,
        0,
        32,
        32,
        256,
    ]


def by_ggml(x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], block: int) -> np.ndarray[tuple[int, ...], np.dtype]:
    """The rows as ggml's own functions give them back."""
    lib = ctypes.CDLL(str(library("ggml-base", library_folder())))
    # block_q8_0 and block_q8_K of ggml-common.h.
    small = np.dtype([("d", "<f2"), ("q", "i1", 32)])
    large = np.dtype([("d", "<f4"), ("q", "i1", 256), ("sums", "<i2", 16)])
    found = np.empty(x.size // block, small if block == 32 else large)
    run = lib.quantize_row_q8_0_ref if block == 32 else lib.quantize_row_q8_K_ref
    run(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(found.ctypes.data), ctypes.c_int64(x.size))
    return (found["d"].astype(np.float32)[:, None] * found["q"].astype(np.float32)).reshape(x.shape)


@pytest.mark.native
@pytest.mark.parametrize("block", BLOCKS)
def test_ggml_gives_back_the_same_values(block: int) -> None:
    x = rows(20)
    back = by_ggml(x, block)
    step = np.abs(x).max() / 127
    # Its scales are float16 in blocks of 32, and halves may round to the other side.
    assert np.abs(back - (x + lost_by_rounding(x, block))).max() < 1.01 * step
    assert np.square(back - x).sum(1) / np.square(x).sum(1) == pytest.approx(share_lost(x, block), rel=0.02)
