"""The tensors of a pruned Hugging Face folder and the work that makes each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.checkpoint.decode import check_finite
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint
from collab_plugin.checkpoint.tensor_sources import Matrix, round_to_bf16
from collab_plugin.compression.hf_pack_quantized import packed_columns, quantize
from collab_plugin.compression.hf_precision import QUANTIZED_ROLES, Precision, block_of
from collab_plugin.compression.tiles import TILE_BYTES
from collab_plugin.formats.safetensors_header import ITEM_BYTES, Stored
from collab_plugin.formats.safetensors_layout import SafetensorsTensor
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.artifact import kept_of
from collab_plugin.plans.plan import Plan

Piece = tuple[str, int, NDArray[np.generic]]
"""(tensor to write, byte offset in it, values as stored)"""


@dataclass(frozen=True)
class Output:
    """What one stored matrix becomes.

    ``name`` is its new name. ``rows`` are the rows to keep in their order (routers), None for all.
    ``quantizable``: a matrix of a block that may have a ``precision``, which quantizes it. ``widen`` turns
    FP8 and its scales into BF16.
    """

    name: str
    matrix: Matrix
    rows: tuple[int, ...] | None = None
    quantizable: bool = False
    precision: Precision | None = None
    widen: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.matrix.stored.shape
        return stored if self.rows is None else (len(self.rows), *stored[1:])

    @property
    def dtype(self) -> str:
        """Of the values, or of the scales when it is quantized."""
        stored = self.matrix.stored.dtype
        return "BF16" if stored == "F8_E4M3" and (self.widen or self.precision) else stored

    def tensors(self) -> list[SafetensorsTensor]:
        if self.precision is None:
            own = [SafetensorsTensor(self.name, self.dtype, self.shape)]
            scale = self.matrix.scale
            return own if scale is None or self.widen else [*own, _scale_of(self.name, scale)]
        rows, columns = self.shape
        words = packed_columns(columns, self.precision.bits)
        return [
            SafetensorsTensor(f"{self.name}_packed", "I32", (rows, words)),
            SafetensorsTensor(f"{self.name}_scale", self.dtype, (rows, columns // self.precision.group)),
            SafetensorsTensor(f"{self.name}_shape", "I64", (2,)),
        ]


@dataclass(frozen=True)
class Work:
    """Rows ``start``..``stop`` of the output: at most 32 MiB as float32 (or one row)."""

    output: Output
    start: int
    stop: int

    @property
    def values(self) -> int:
        return prod(self.output.shape[1:]) * (self.stop - self.start)

    def pieces(self) -> Iterator[Piece]:
        """Read, check, and convert; CollabError for values that are not finite."""
        out = self.output
        stored = out.matrix.stored
        if out.rows is not None:
            yield from self._chosen(out.rows)
            return
        where = slice(self.start, self.stop) if len(stored.shape) > 1 else None
        values = check_finite(out.matrix.values(where), stored.name, None)
        if out.precision is not None:
            yield from self._quantized(values, out.precision)
            return
        if out.dtype != stored.dtype:
            yield out.name, self._offset(stored.shape[-1] * 2), round_to_bf16(values)
            return
        raw = _rows(stored)
        yield out.name, self._offset(raw.shape[1]), raw[self.start : self.stop]
        if out.matrix.scale is not None and self.start == 0:
            yield _scale_of(out.name, out.matrix.scale).name, 0, _rows(out.matrix.scale)

    def _chosen(self, rows: tuple[int, ...]) -> Iterator[Piece]:
        """Rows of a router or fused experts as they are stored."""
        stored = self.output.matrix.stored
        raw = _rows(stored)
        for place, row in enumerate(rows[self.start : self.stop], self.start):
            if len(stored.shape) > 1:
                check_finite(self.output.matrix.values(slice(row, row + 1)), stored.name, None)
            else:
                check_finite(self.output.matrix.values()[row], stored.name, None)
            yield self.output.name, place * raw.shape[1], raw[row : row + 1]

    def _quantized(self, values: NDArray[np.float32], precision: Precision) -> Iterator[Piece]:
        out = self.output
        packed, scales = quantize(values, precision.bits, precision.group, out.dtype)
        yield f"{out.name}_packed", self._offset(packed[0].nbytes), packed
        yield f"{out.name}_scale", self._offset(scales[0].nbytes), scales
        if self.start == 0:
            yield f"{out.name}_shape", 0, np.array(out.shape, "<i8")

    def _offset(self, row: int) -> int:
        return self.start * row


def outputs(
    checkpoint: SafetensorsCheckpoint, plan: Plan, blocks: dict[str, Precision | None] | None
) -> Iterator[Output]:
    """Every matrix of the folder, layer by layer; ``blocks`` of None keeps the stored precision."""
    seen: set[str] = set()
    for info in checkpoint.tensors.values():
        for output in _of_tensor(checkpoint, plan, info):
            if output.name in seen:  # MLA's kv_b_proj is two tensors of a GGUF
                continue
            seen.add(output.name)
            if blocks is not None:
                precision = blocks[block_of(output.name)] if output.quantizable else None
                output = replace(output, precision=precision, widen=output.matrix.scale is not None)
            yield output


def _of_tensor(checkpoint: SafetensorsCheckpoint, plan: Plan, info: TensorInfo) -> Iterator[Output]:
    kept, matrices = kept_of(info, plan), checkpoint.stored(info.name)
    if info.role != Role.EXPERT or _fused(matrices[0]):
        quantizable = info.role in QUANTIZED_ROLES and len(info.shape) > 1 and not _fused(matrices[0])
        yield Output(matrices[0].stored.name, matrices[0], rows=kept, quantizable=quantizable)
        return
    for new, old in enumerate(range(len(matrices)) if kept is None else kept):
        name = re.sub(r"\.experts\.\d+\.", f".experts.{new}.", matrices[old].stored.name)
        yield Output(name, matrices[old], quantizable=True)


def _fused(matrix: Matrix) -> bool:
    """All experts in one stored tensor."""
    return len(matrix.stored.shape) == 3


def works(outputs: list[Output]) -> Iterator[Work]:
    """The work in pieces of bounded memory."""
    for output in outputs:
        shape = output.shape
        rows = shape[0] if len(shape) > 1 else 1
        step = max(1, TILE_BYTES // (4 * prod(shape[1:], start=1))) if rows > 1 else 1
        for start in range(0, rows, step):
            yield Work(output, start, shape[0] if len(shape) == 1 else min(rows, start + step))


def _scale_of(name: str, scale: Stored) -> SafetensorsTensor:
    return SafetensorsTensor(f"{name}_scale_inv", scale.dtype, scale.shape)


def _rows(stored: Stored) -> NDArray[np.uint8]:
    """uint8[rows, bytes a row]; a vector has a row for each value."""
    rows = stored.shape[0] if stored.shape else 1
    wide = prod(stored.shape[1:], start=1) * ITEM_BYTES[stored.dtype]
    return stored.data.reshape(rows, wide)
