"""Products on a target's device against float64 products of the weights that gguf-py dequantizes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from collab_llamacpp.targets.builds import LIBRARIES, backend_libraries
from collab_llamacpp.targets.llamacpp_targets import LlamaCppTargets
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from gguf.quants import quantize as quantize_in_python
from target_child import Arrays, in_child

from collab_plugin.formats.ggml_types import TYPES, row_bytes, type_info

# llama.cpp's own limit for both operations (tests/test-backend-ops.cpp).
MOST_NMSE = 5e-4
EXPERTS, ROWS, COLUMNS, CHOSEN = 6, 48, 512, 3
# The matrix-vector kernel, an odd number of rows, and enough for BLAS.
TOKENS = (1, 7, 64)
FEW = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K")


@dataclass(frozen=True)
class Operands:
    """``path``: what `target_child.run_bench` reads; ``values[type]`` f64[experts, rows, columns]."""

    path: Path
    values: dict[str, np.ndarray]
    x: dict[int, np.ndarray]
    ids: dict[int, np.ndarray]


def make_operands(types: Sequence[str], path: Path) -> Operands:
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((EXPERTS * ROWS, COLUMNS)).astype(np.float32) / 50
    kernels, ones = GgmlKernels(), np.ones(COLUMNS, np.float32)
    stored: Arrays = {}
    values = {}
    for name in types:
        kind = GGMLQuantizationType[name]
        if name.endswith(("F16", "F32")):
            raw = np.ascontiguousarray(quantize_in_python(weights, kind)).view(np.uint8)
        else:
            raw = kernels.quantize(weights, name, ones if type_info(name).needs_imatrix else None)
        typed = raw.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        values[name] = dequantize(typed, kind).astype(np.float64).reshape(EXPERTS, ROWS, COLUMNS)
        stored[f"{name}.weights"] = raw.reshape(EXPERTS, ROWS, row_bytes(name, COLUMNS))
    x = {n: rng.standard_normal((n, COLUMNS)).astype(np.float32) for n in TOKENS}
    ids = {n: np.stack([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(n)]).astype(np.int32) for n in TOKENS}
    stored |= {f"x.{n}": x[n] for n in TOKENS} | {f"ids.{n}": ids[n] for n in TOKENS}
    np.savez(path, **stored)
    return Operands(path, values, x, ids)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Operands:
    return make_operands(FEW, tmp_path_factory.mktemp("few") / "operands.npz")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Operands:
    return make_operands(tuple(TYPES), tmp_path_factory.mktemp("every") / "operands.npz")


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.square(found - expected).sum() / np.square(expected).sum())


def products(
    name: str,
    operands: Operands,
    folder: Path,
    *,
    types: Sequence[str],
    rows: Sequence[int] = TOKENS,
    experts: bool = True,
) -> Arrays:
    job = {"do": "bench", "operands": str(operands.path), "types": list(types), "rows": list(rows), "experts": experts}
    done, found = in_child(name, job, folder, seconds=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


def worst(found: Arrays, operands: Operands, types: Sequence[str], rows: Sequence[int] = TOKENS) -> dict[str, float]:
    """The largest NMSE by type, of both operations."""
    errors = {}
    for name in types:
        each = []
        for n in rows:
            x = operands.x[n].astype(np.float64)
            each.append(nmse(found[f"{name}.{n}"], x @ operands.values[name][0].T))
            if f"{name}.{n}.id" in found:
                chosen = operands.values[name][operands.ids[n]]  # f64[tokens, k, rows, columns]
                each.append(nmse(found[f"{name}.{n}.id"], np.einsum("tkrc,tc->tkr", chosen, x)))
        errors[name] = max(each)
    return errors


def check(found: Arrays, operands: Operands, types: Sequence[str], rows: Sequence[int] = TOKENS) -> None:
    errors = worst(found, operands, types, rows)
    assert not {name: e for name, e in errors.items() if not e < MOST_NMSE}


def check_exact(errors: dict[str, float], *, float32: float = 1e-10, float16: float = 1e-6) -> None:
    """Activations are not rounded to 8 bits for these types, so a small mistake shows."""
    assert errors["F32"] < float32 and errors["F16"] < float16


def available(name: str, folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if folder is not None:
        monkeypatch.setenv(LIBRARIES.variable, str(folder))
    info = next((info for info in LlamaCppTargets().find() if info.name == name), None)
    if info is None or info.absent:
        pytest.skip(f"{name}: {info.absent if info else 'not built'}")


def test_the_installed_build(few: Operands, tmp_path: Path) -> None:
    found = products("llamacpp:cpu", few, tmp_path, types=FEW)
    assert set(found["types"].tolist()) == set(TYPES), "the CPU multiplies with every type that is offered"
    check(found, few, FEW)
    check_exact(worst(found, few, FEW))


def test_repacked_weights(few: Operands, tmp_path: Path) -> None:
    """Other buffers, so other kernels: llama.cpp repacks Q4_0 on AVX2 and on ARM."""
    repacked = products("llamacpp:cpu", few, tmp_path, types=FEW)
    plain = products("llamacpp:cpu-norepack", few, tmp_path, types=FEW)
    check(plain, few, FEW)
    assert {str(plain[f"{name}.where"]) for name in FEW} == {"CPU"}
    if str(repacked["Q4_0.where"]) == "CPU":
        pytest.skip("llama.cpp repacks nothing on this processor")
    assert repacked["Q4_0.where"] == repacked["Q4_K.where"] == "CPU_REPACK"


@pytest.mark.slow
@pytest.mark.parametrize("code_path", ["cpu", "cpu-norepack", "cpu-x64", "cpu-sse42", "cpu-haswell"])
def test_every_type(
    code_path: str,
    every: Operands,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"llamacpp:{code_path}"
    if code_path not in ("cpu", "cpu-norepack"):
        if platform.machine() != "x86_64":
            pytest.skip("x86 code paths")
        available(name, request.getfixturevalue("llama_libraries"), monkeypatch)
    found = products(name, every, tmp_path, types=tuple(TYPES))
    check(found, every, tuple(TYPES))
    check_exact(worst(found, every, ("F32", "F16")))


def test_blas(few: Operands, llama_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS takes large products only, and none by expert."""
    available("llamacpp:blas", llama_libraries, monkeypatch)
    found = products("llamacpp:blas", few, tmp_path, types=FEW, rows=(64,), experts=False)
    check(found, few, FEW, rows=(64,))
    # It multiplies dequantized weights in float32, so even these have no error of 8-bit activations.
    assert worst(found, few, FEW, rows=(64,))["Q4_K"] < 1e-10
    job = {"do": "bench", "operands": str(few.path), "types": ["Q8_0"], "rows": [1], "experts": False}
    done, _ = in_child("llamacpp:blas", job, tmp_path)
    assert "NotOfferedError: the device declines Q8_0 weights of this shape" in done.stderr


@pytest.mark.slow
def test_vulkan(few: Operands, llama_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few types and sizes: every kernel is compiled first, which takes seconds each (Mesa keeps them)."""
    if "vulkan" not in backend_libraries(llama_libraries):
        pytest.skip("no Vulkan: its packages could not be had when the libraries were built")
    available("llamacpp:vulkan:0", llama_libraries, monkeypatch)
    types, rows = ("F32", "F16", "Q4_K"), (1, 64)
    found = products("llamacpp:vulkan:0", few, tmp_path, types=types, rows=rows)
    assert {str(found[f"{name}.where"]) for name in types} == {"Vulkan0"}
    assert {"F32", "F16", "Q8_0", "Q4_K", "IQ2_XXS"} <= set(found["types"].tolist())
    check(found, few, types, rows)
    check_exact(worst(found, few, types, (1,)))
    # Its matrix-matrix kernel multiplies in float16 where the device has that.
    check_exact(worst(found, few, types, (64,)), float32=1e-6, float16=5e-5)


def test_operands_that_do_not_fit(few: Operands) -> None:
    with LlamaCppTargets().open("llamacpp:cpu").kernels() as bench:
        weights = np.zeros((EXPERTS, ROWS, row_bytes("Q8_0", COLUMNS)), np.uint8)
        with pytest.raises(ValueError, match="Q8_0 weights"):
            bench.mul_mat("Q8_0", weights[0], np.zeros((2, COLUMNS // 2), np.float32))
        with pytest.raises(ValueError, match=f"2 tokens and {EXPERTS} experts"):
            bench.mul_mat_id("Q8_0", weights, np.zeros((2, COLUMNS), np.float32), np.array([[0], [EXPERTS]], np.int32))
