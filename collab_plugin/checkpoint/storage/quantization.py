"""config.json's ``quantization_config``, as far as the tensors themselves do not say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collab_plugin.errors import CollabError

SCALE_BLOCK = (128, 128)  # rows and columns of an FP8 scale where weight_block_size is left out
_METHODS = ("fp8", "compressed-tensors", "mxfp4", "modelopt", "fbgemm_fp8")
_SPARSE = ("dense", None)


@dataclass(frozen=True)
class Quantization:
    """``blocks``: rows and columns that an FP8 scale may be for.

    ``by_row``: weight_scale_inv may also be a row's or the matrix's, as weight_scale always may.
    """

    blocks: tuple[tuple[int, int], ...] = (SCALE_BLOCK,)
    by_row: bool = False


def quantization_of(where: str, config: Mapping[str, Any]) -> Quantization:
    """How config.json says that weights are quantized; CollabError for what is not read."""
    told = config.get("quantization_config")
    if told is None:
        return Quantization()
    method = told.get("quant_method") if isinstance(told, dict) else str(told)
    if not isinstance(told, dict) or method not in _METHODS:
        raise CollabError(f"{where} is quantized as {str(method)[:40]}, which is not read here; give the original")
    if method == "fp8":
        return _block_float8(where, told)
    if method == "compressed-tensors":
        return _compressed_tensors(where, told)
    return Quantization(by_row=True)


def _block_float8(where: str, told: Mapping[str, Any]) -> Quantization:
    if (fmt := told.get("fmt", "e4m3")) != "e4m3":
        raise CollabError(f"{where} is quantized as FP8 {str(fmt)[:40]}, only e4m3 is read here; give the original")
    size = told.get("weight_block_size", SCALE_BLOCK)
    return Quantization((), by_row=True) if size is None else Quantization((_block(where, "weight_block_size", size),))


def _compressed_tensors(where: str, told: Mapping[str, Any]) -> Quantization:
    if told.get("transform_config"):
        raise CollabError(f"{where} has weights that are rotated (transform_config), which is not undone here")
    sparsity = told.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format") not in _SPARSE:
        raise CollabError(f"{where} has sparse weights (sparsity_config), which are not read here; give the original")
    groups = told.get("config_groups")
    if not isinstance(groups, dict):
        raise CollabError(f"{where} is quantized by compressed-tensors without config_groups; download it again")
    weights = [g.get("weights") for g in groups.values() if isinstance(g, dict)]
    blocks = [w["block_structure"] for w in weights if isinstance(w, dict) and w.get("block_structure") is not None]
    return Quantization(tuple(_block(where, "block_structure", size) for size in blocks), by_row=True)


def _block(where: str, key: str, size: object) -> tuple[int, int]:
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in size):
        raise CollabError(f"{where} has {key} {str(size)[:40]}, not rows and columns of a scale; correct config.json")
    return size[0], size[1]
