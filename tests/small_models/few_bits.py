"""Hugging Face folders whose experts were trained in few bits: random codes and scales, and the values they mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from small_models.hf_folder import HIDDEN, Tensor, bf16, deepseek, qwen, write_folder

F32 = NDArray[np.float32]
WIDTH = 128
PROJECTIONS = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
FORMATS = ("mxfp4", "int4", "int8", "nvfp4", "nvfp4-modelopt", "fp8")
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)
_COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": {}}
QUANTIZATION: Mapping[str, Any] = {
    **dict.fromkeys(("mxfp4", "int4", "int8", "nvfp4"), _COMPRESSED),
    "nvfp4-modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def few_bits(folder: Path, form: str, family: str = "qwen3moe") -> tuple[Path, dict[str, NDArray[np.float64]]]:
    """The folder, and float64[experts, rows, columns] by GGUF name: what codes and scales mean, before any rounding."""
    made = qwen if family == "qwen3moe" else deepseek
    config, tensors = made(moe_intermediate_size=WIDTH, quantization_config=QUANTIZATION[form])
    rng = np.random.default_rng(5)
    values: dict[str, NDArray[np.float64]] = {}
    experts = sorted(name for name in tensors if ".experts." in name)
    if family != "qwen3moe":
        tensors |= _shared(rng)
    for name in experts:
        del tensors[name]
        parts = name.split(".")
        layer, expert, part = parts[2], int(parts[5]), parts[6].removesuffix("_proj")
        stored, meant = matrix(form, PROJECTIONS[part], rng)
        tensors |= {f"{name}{end}": tensor for end, tensor in stored.items()}
        whole = values.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", np.zeros((4, *PROJECTIONS[part])))
        whole[expert] = meant
    return write_folder(folder, config, tensors), values


def _shared(rng: np.random.Generator) -> dict[str, Tensor]:
    return {
        f"model.layers.1.mlp.shared_experts.{part}_proj.weight": bf16(
            rng.standard_normal(shape).astype(np.float32) / 14
        )
        for part, shape in PROJECTIONS.items()
    }


def matrix(
    form: str, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[dict[str, Tensor], NDArray[np.float64]]:
    """What is stored of one matrix, by what its name ends in, and its values."""
    if form.startswith("int"):
        return _integers(int(form.removeprefix("int")), shape, rng)
    if form == "fp8":
        return _float8(shape, rng)
    return _floats_of_four_bits(form, shape, rng)


def _integers(bits: int, shape: tuple[int, int], rng: np.random.Generator) -> tuple[dict[str, Tensor], Any]:
    rows, columns = shape
    half = 2 ** (bits - 1)
    numbers = rng.integers(-half, half, shape)
    scales = rng.uniform(0.01, 0.02, (rows, columns // 32)).astype(np.float16)
    packed = (numbers + half).astype(np.uint32).reshape(rows, -1, 32 // bits)
    words = (packed << (bits * np.arange(32 // bits, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    stored = {
        "_packed": Tensor("I32", words.shape, words.astype("<u4").tobytes()),
        "_scale": Tensor("F16", scales.shape, scales.tobytes()),
        "_shape": Tensor("I64", (2,), np.array(shape, "<i8").tobytes()),
    }
    return stored, numbers * scales.astype(np.float64).repeat(32, 1)


def _floats_of_four_bits(form: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[dict[str, Tensor], Any]:
    rows, columns = shape
    codes = rng.integers(0, 16, shape, np.uint8)
    meant = _E2M1[codes & 7] * np.where(codes & 8, -1, 1)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    stored = {"_packed": Tensor("U8", packed.shape, packed.tobytes())}
    if form == "mxfp4":
        exponents = rng.integers(119, 122, (rows, columns // 32), np.uint8)
        stored["_scale"] = Tensor("U8", exponents.shape, exponents.tobytes())
        return stored, meant * 2.0 ** (exponents.astype(int) - 127).repeat(32, 1)
    local = rng.integers(0x40, 0x7F, (rows, columns // 16), np.uint8)  # E4M3 from 2 to 448
    stored["_scale"] = Tensor("F8_E4M3", local.shape, local.tobytes())
    scales = (1 + (local & 7) / 8) * 2.0 ** ((local >> 3).astype(int) - 7)
    whole = np.float32(rng.uniform(6000, 9000))
    if form == "nvfp4":
        stored["_global_scale"] = Tensor("F32", (1,), whole.tobytes())
        return stored, meant * scales.repeat(16, 1) / np.float64(whole)
    other = np.float32(1) / whole
    stored = {"": stored["_packed"], "_scale": stored["_scale"], "_scale_2": Tensor("F32", (), other.tobytes())}
    return stored, meant * scales.repeat(16, 1) * np.float64(other)


def _float8(shape: tuple[int, int], rng: np.random.Generator) -> tuple[dict[str, Tensor], Any]:
    codes = rng.integers(0x20, 0x7F, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
    scales = np.full((-(-shape[0] // 128), -(-shape[1] // 128)), 2.0**-12, np.float32)
    values = (1 + (codes & 7) / 8) * 2.0 ** ((codes >> 3 & 15).astype(int) - 7) * np.where(codes & 128, -1, 1)
    stored = {
        "": Tensor("F8_E4M3", shape, codes.tobytes()),
        "_scale_inv": Tensor("F32", scales.shape, scales.tobytes()),
    }
    return stored, values * 2.0**-12
