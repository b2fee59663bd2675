"""Random operands of the kernels level, quantized once and kept in a folder for all targets of a run."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from collab_plugin.engines.target import F32, I32, Bytes, NotOfferedError
from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import first_kernels

EXPERTS, USED = 8, 3
# Rows, columns and tokens: no multiples of the usual tile sizes, but for the block of 256.
ROWS, COLUMNS, TOKENS = 74, 768, 37
SHORT_ROWS, SHORT_COLUMNS = 34, 512


@dataclass(frozen=True)
class Operands:
    """``weights`` uint8[experts, rows, bytes a row], ``x`` f32[tokens, columns], ``ids`` i32[tokens, k];
    ``expected`` f64 by product, in the shapes of `KernelBench`."""

    weights: Bytes
    x: F32
    ids: I32
    expected: Mapping[str, NDArray[np.float64]]


def operands(type_name: str, seed: int, folder: Path, *, short: bool) -> Operands:
    """Make the operands of a type; NotOfferedError when nothing here can quantize to it or back."""
    if type_name not in GGMLQuantizationType.__members__:
        raise NotOfferedError("gguf-py does not know the type, so that there is nothing to compare with")
    rng = np.random.default_rng([seed, zlib.crc32(type_name.encode())])
    weights = _weights(type_name, rng, seed, folder, short)
    x = activations(rng, _size(short)[1])
    ids = np.argsort(rng.random((TOKENS, EXPERTS)), 1)[:, :USED].astype(np.int32)
    return Operands(weights, x, ids, expected(weights, type_name, x, ids))


def keep_weights(types: Iterable[str], seed: int, folder: Path, *, short: bool) -> None:
    """Quantize the weights of ``types`` into ``folder``, for a child whose Python has no kernels to do it."""
    for name in types:
        with suppress(NotOfferedError):
            _weights(name, np.random.default_rng([seed, zlib.crc32(name.encode())]), seed, folder, short)


def _size(short: bool) -> tuple[int, int]:
    """Rows and columns."""
    return (SHORT_ROWS, SHORT_COLUMNS) if short else (ROWS, COLUMNS)


def _weights(type_name: str, rng: np.random.Generator, seed: int, folder: Path, short: bool) -> Bytes:
    rows, columns = _size(short)
    values = matrices(rng, rows, columns)
    return _stored(folder / f"{type_name}-{seed}-{rows}x{columns}.npy", values, type_name)


def matrices(rng: np.random.Generator, rows: int, columns: int) -> F32:
    """f32[experts, rows, columns] as trained weights are: Gaussian, rows of unlike size, a few large values."""
    size = rng.lognormal(np.log(0.02), 0.4, (EXPERTS, rows, 1))
    return (size * rng.standard_t(8, (EXPERTS, rows, columns))).astype(np.float32)


def activations(rng: np.random.Generator, columns: int) -> F32:
    """f32[tokens, columns] as they enter a layer: Gaussian after the norm, 1 channel in 128 some times
    larger."""
    x = rng.standard_normal((TOKENS, columns))
    loud = rng.choice(columns, columns // 128, replace=False)
    x[:, loud] *= rng.uniform(3, 6, len(loud))
    return x.astype(np.float32)


def expected(weights: Bytes, type_name: str, x: F32, ids: I32) -> dict[str, NDArray[np.float64]]:
    """The products in float64 of the weights as gguf-py, which is no part of any engine, dequantizes them."""
    try:
        w = dequantize(weights, GGMLQuantizationType[type_name]).astype(np.float64)
    except NotImplementedError:
        raise NotOfferedError("gguf-py cannot dequantize the type, so that there is nothing to compare with") from None
    every = np.einsum("erc,tc->ter", w, x.astype(np.float64))
    return {
        "mul_mat_vec": every[:1, 0],
        "mul_mat": every[:, 0],
        "mul_mat_id": np.take_along_axis(every, ids[:, :, None], 1),
    }


def _stored(path: Path, values: F32, type_name: str) -> Bytes:
    if path.exists():
        kept: Bytes = np.load(path, allow_pickle=False)
        return kept
    weights = _quantize(values, type_name)
    np.save(path, weights, allow_pickle=False)
    return weights


def _quantize(values: F32, type_name: str) -> Bytes:
    flat = values.reshape(-1, values.shape[-1])
    try:
        kernels = first_kernels()
        # As an importance vector the values' own mean squares: IQ types refuse to go without one.
        imatrix = np.square(flat).mean(0) if kernels.requires_imatrix(type_name) else None
        rows = kernels.quantize(flat, type_name, imatrix)
    except CollabError:
        rows = _by_gguf(flat, type_name)
    return rows.reshape(*values.shape[:2], -1)


def _by_gguf(flat: F32, type_name: str) -> Bytes:
    """Where no engine brings kernels: what gguf-py can write."""
    try:
        return quantize(flat, GGMLQuantizationType[type_name]).view(np.uint8)
    except NotImplementedError:
        raise NotOfferedError(f"no kernels are installed that quantize to {type_name}") from None
