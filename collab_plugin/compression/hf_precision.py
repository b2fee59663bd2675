"""Which precision of compressed-tensors stands for the plan's types, block by block.

Engines fuse the matrices of a block (query, key and value; gate and up; all experts of a layer) and want
one precision in it, so one is chosen for all of them: by the bits a weight that the plan gives the block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint
from collab_plugin.checkpoint.storage.packed_integers import PackedIntegers
from collab_plugin.checkpoint.storage.stored_matrix import Matrix
from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.plan import Plan

QUANTIZED_ROLES = (Role.EXPERT, Role.SHARED_EXPERT, Role.FFN, Role.ATTENTION)


@dataclass(frozen=True)
class Precision:
    """``bits`` a value and one scale for ``group`` values of a row."""

    bits: int
    group: int


# Above these bits a weight of the plan: (as stored, 8 bits, 4 bits with many scales, 4 bits with few).
UNQUANTIZED, EIGHT, FINE_FOUR = 12.0, 6.0, 4.25


def block_of(name: str) -> str:
    """The block of the stored tensor ``name``: ``model.layers.3.mlp.experts`` for each of its experts."""
    return re.sub(r"\.\d+$", "", name.rsplit(".", 2)[0])


def precisions(checkpoint: SafetensorsCheckpoint, plan: Plan) -> dict[str, Precision | None]:
    """Precision of each block with matrices that may be quantized; None leaves it as it is stored."""
    members: dict[str, list[TensorInfo]] = {}
    for name, info in checkpoint.tensors.items():
        stored = checkpoint.stored(name)  # nothing of what only a GGUF has, such as scales beside experts
        if info.role in QUANTIZED_ROLES and stored and len(stored[0].shape) == 2:
            members.setdefault(block_of(stored[0].name), []).append(info)
    return {block: _precision(checkpoint, plan, infos) for block, infos in members.items()}


def stored_precision(matrix: Matrix) -> Precision | None:
    """The precision that a matrix is stored in already, if it is one of these."""
    if not isinstance(matrix, PackedIntegers) or matrix.native is None or len(matrix.parts) != 3:
        return None
    return Precision(matrix.bits, matrix.shape[1] // matrix.parts[1].shape[1])


def _kept_precision(checkpoint: SafetensorsCheckpoint, plan: Plan, infos: list[TensorInfo]) -> Precision | None:
    """The precision of a block whose tensors stay as they are stored."""
    if any(plan.tensors[info.name].type != info.type.name for info in infos):
        return None
    found = {stored_precision(matrix) for info in infos for matrix in checkpoint.stored(info.name)}
    return found.pop() if len(found) == 1 else None


def _precision(checkpoint: SafetensorsCheckpoint, plan: Plan, infos: list[TensorInfo]) -> Precision | None:
    if kept := _kept_precision(checkpoint, plan, infos):
        return kept
    values = sum(i.n_elements for i in infos)
    bits = sum(i.n_elements * bits_per_weight(plan.tensors[i.name].type) for i in infos) / values
    if bits >= UNQUANTIZED:
        return None
    widths = {m.shape[-1] for i in infos for m in checkpoint.stored(i.name)}
    wide = all(width % 128 == 0 for width in widths)
    if not wide and any(width % 32 for width in widths):
        return None
    if bits >= EIGHT:
        return Precision(8, 128 if wide else 32)
    return Precision(4, 128 if wide and bits < FINE_FOUR else 32)


def quantization_config(blocks: Mapping[str, Precision | None], matrices: Iterable[str]) -> dict[str, Any] | None:
    """config.json's ``quantization_config``; None when nothing is quantized. ``matrices``: their stored names."""
    chosen = sorted({p for p in blocks.values() if p is not None}, key=lambda p: (p.bits, p.group))
    if not chosen:
        return None
    modules: dict[str, set[str]] = {}
    for name in matrices:
        modules.setdefault(block_of(name), set()).add(name.rsplit(".", 2)[1])
    patterns = {block: _pattern(block, sorted(modules[block])) for block in blocks}
    groups = {
        f"group_{index}": {
            "targets": [patterns[block] for block, p in blocks.items() if p == precision],
            "weights": {
                "num_bits": precision.bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": precision.group,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
        for index, precision in enumerate(chosen)
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", r"re:.*\.mlp\.gate$", *(patterns[block] for block, p in blocks.items() if p is None)],
    }


def _pattern(block: str, modules: Sequence[str]) -> str:
    """Matches the modules of a block: the matrices in it, or those of each of its experts."""
    inner = r"\d+\." if block.endswith(".experts") else ""
    return f"re:^{re.escape(block)}\\.{inner}({'|'.join(modules)})$"
