"""Which format a matrix is stored in: told by the names and dtypes of the tensors that hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from collab_plugin.checkpoint.storage.microscaled import Mxfp4, Nvfp4
from collab_plugin.checkpoint.storage.packed_integers import PackedIntegers
from collab_plugin.checkpoint.storage.quantization import Quantization
from collab_plugin.checkpoint.storage.scaled_float8 import ScaledFloat8
from collab_plugin.checkpoint.storage.stored_matrix import Matrix, Plain, WholeNumbers
from collab_plugin.errors import CollabError
from collab_plugin.formats.safetensors_header import Stored

_Part = Callable[..., Stored | None]
_BESIDE = ("_scale_inv", "_scale", "_packed", "_shape", "_zero_point", "_g_idx", "_scale_2", "_global_scale", "_blocks",
           "_scales")  # fmt: skip
# Scales of activations and of cached keys and values: engines that compute in few bits read them.
_OF_ACTIVATIONS = ("input_scale", "output_scale", "activation_scale", "input_global_scale", "input_zero_point",
                   ".k_scale", ".v_scale", ".q_scale")  # fmt: skip


def is_stored(name: str, stored: Mapping[str, Stored]) -> bool:
    """Whether the folder has the matrix ``name``, packed or not."""
    return name in stored or f"{name}_packed" in stored or f"{name}_blocks" in stored


def stored_name(name: str, stored: Mapping[str, Stored]) -> str:
    """The name of the tensor that holds the values of the matrix ``name``."""
    return next((full for full in (name, f"{name}_packed", f"{name}_blocks") if full in stored), name)


def without_effect(name: str) -> bool:
    """Whether the tensor ``name`` scales activations only, and so is no part of the weights."""
    return name.endswith(_OF_ACTIVATIONS)


def beside(name: str, stored: Mapping[str, Stored]) -> bool:
    """Whether the tensor ``name`` only belongs to another one that is there."""
    return any(name.endswith(end) and is_stored(name.removesuffix(end), stored) for end in _BESIDE) or (
        name.endswith(".scale") and is_stored(f"{name.removesuffix('.scale')}.weight", stored)
    )


def matrix_of(name: str, shape: tuple[int, ...], stored: Mapping[str, Stored], quantization: Quantization) -> Matrix:
    """The matrix ``name``, which should have ``shape``; CollabError for a format that is not known.

    ``stored``: all tensors of the folder, of which `is_stored` finds this one. The matrix has the name that the file
    has, which ``name`` may stand for.
    """

    def part(*ends: str) -> Stored | None:
        return next((stored[name + end] for end in ends if name + end in stored), None)

    def needed(*ends: str) -> Stored:
        found = part(*ends)
        if found is None:
            raise CollabError(f"{name}{ends[0]} is not stored beside {stored_name(name, stored)}; download it again")
        return found

    if (blocks := part("_blocks")) is not None:
        return Mxfp4(blocks.name.removesuffix("_blocks"), blocks, needed("_scales"))
    if (packed := part("_packed")) is not None:
        return _packed(shape, packed, needed("_scale"), part)
    values = needed("")
    scale = part("_scale", "_scale_inv")
    if scale is None and name.endswith(".weight"):
        scale = stored.get(f"{name.removesuffix('.weight')}.scale")
    if values.dtype == "F8_E4M3" and scale is not None:
        by_row = quantization.by_row or not scale.name.endswith("_scale_inv")
        return ScaledFloat8(values, scale, quantization.blocks, by_row)
    if values.dtype == "F8_E4M3":
        raise CollabError(f"{name}: FP8 weights need weight_scale_inv or weight_scale")
    if scale is None:
        return WholeNumbers(values) if values.dtype in ("I32", "I64") else Plain(values)
    whole = part("_scale_2")
    if values.dtype == "U8" and whole is not None:
        return Nvfp4(values.name, values, scale, whole, multiply=True)
    if values.dtype in ("I8", "U8") and scale.dtype in ("F8_E8M0", "U8"):
        return Mxfp4(values.name, values, scale)
    if values.dtype == "I8":
        return PackedIntegers(values.name, shape, values, scale, part("_zero_point"))
    raise CollabError(
        f"{name} is {values.dtype} beside {scale.name}: weights of 4 and 8 bits have scales, and only they"
    )


def _packed(shape: tuple[int, ...], packed: Stored, scale: Stored, part: _Part) -> Matrix:
    name = packed.name.removesuffix("_packed")
    if packed.dtype == "I32":
        told = part("_shape")
        extra = () if told is None else (told,)
        return PackedIntegers(name, shape, packed, scale, part("_zero_point"), part("_g_idx"), extra)
    whole = part("_global_scale")
    if whole is not None:
        return Nvfp4(name, packed, scale, whole, multiply=False)
    return Mxfp4(name, packed, scale)
