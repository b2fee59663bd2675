"""FP8 and BF16 are decoded in strips and in place: the same bits as one value at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from collab_plugin.checkpoint.decode import bf16_to_f32
from collab_plugin.checkpoint.storage import small_floats
from collab_plugin.checkpoint.storage.scaled_float8 import ScaledFloat8
from collab_plugin.checkpoint.storage.small_floats import E4M3, round_to_bf16
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.formats.safetensors_header import Stored

RNG = np.random.default_rng(0)
# 1 + 1/128 times a mantissa of four bits lies halfway between two bfloat16; the large and the tiny ones overflow and
# underflow when a code is a float32 2^-120 of its value.
SCALES: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "usual": lambda grid: np.exp(RNG.normal(-5, 2, grid)),
    "halfway": lambda grid: (1 + RNG.integers(0, 128, grid) / 128) / 64,
    "large": lambda grid: 10.0 ** RNG.integers(1, 37, grid),
    "tiny": lambda grid: 10.0 ** -RNG.integers(28, 40, grid).astype(float),
    "zero or less": lambda grid: RNG.integers(-1, 1, grid) * 0.3,
}


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to the nearest BF16 (nearest even), as float32; NaN as NaN."""
    bits = values.view(np.uint32).astype(np.uint64)
    up = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.where(np.isnan(values), np.float32(np.nan), up.astype(np.uint32).view(np.float32))


@pytest.mark.parametrize(
    ("shape", "grid", "block"),
    [
        ((300, 256), (3, 2), (128, 128)),
        ((130, 193), (2, 2), (128, 128)),  # the last block of a row is not whole, and codes are no pairs
        ((70, 64), (70, 1), (1, 64)),
        ((70, 64), (1, 1), (70, 64)),
        ((3, 130, 128), (3, 2, 1), (128, 128)),
    ],
)
@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("kind", SCALES)
def test_float8(
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    block: tuple[int, int],
    nan: bool,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("collab_plugin.checkpoint.storage.scaled_float8.STRIP", 1000)
    codes = RNG.integers(0, 256, shape).astype(np.uint8)
    codes[(codes & 127) == 127] = 5
    if nan:
        codes.reshape(-1)[[7, -1]] = 127, 255
    scales = SCALES[kind](grid).astype("<f4")
    (tmp_path / "data").write_bytes(codes.tobytes() + scales.tobytes())
    file = LocalFile(tmp_path / "data")
    values = Stored("w", "F8_E4M3", shape, file, 0, codes.size)
    matrix = ScaledFloat8(values, Stored("s", "F32", grid, file, codes.size, file.size), [block])
    wide = scales.reshape(grid)
    for axis, size in zip((-2, -1), block, strict=True):
        wide = wide.repeat(size, axis=axis)
    with np.errstate(over="ignore"):
        expected = rounded(E4M3[codes] * wide[tuple(slice(0, n) for n in shape)])
    assert matrix.type == Type.BF16
    for rows in (None, slice(1, 3), np.array([2, 0])):
        found = matrix.values(rows)
        np.testing.assert_array_equal(
            found.view(np.uint32), expected[slice(None) if rows is None else rows].view(np.uint32)
        )


def test_a_thread_that_flushes_small_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every code, where the quick way would take the small ones for zeros."""
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8).reshape(2, -1)
    (tmp_path / "data").write_bytes(codes.tobytes() + np.float32(0.01).tobytes())
    file = LocalFile(tmp_path / "data")
    values = Stored("w", "F8_E4M3", codes.shape, file, 0, codes.size)
    matrix = ScaledFloat8(values, Stored("s", "F32", (1, 1), file, codes.size, file.size), [codes.shape])
    quick = matrix.values()
    monkeypatch.setattr("collab_plugin.checkpoint.storage.scaled_float8.keeps_small", lambda: False)
    np.testing.assert_array_equal(matrix.values().view(np.uint32), quick.view(np.uint32))
    np.testing.assert_array_equal(quick, rounded(E4M3[codes] * np.float32(0.01)))


def test_rounding_to_bf16_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_floats, "STRIP", 1000)
    values = RNG.integers(0, 2**32, (37, 101), dtype=np.uint64).astype(np.uint32).view(np.float32)
    words = round_to_bf16(values)
    np.testing.assert_array_equal(bf16_to_f32(words).view(np.uint32), rounded(values).view(np.uint32))
    np.testing.assert_array_equal(round_to_bf16(values.T), words.T)
