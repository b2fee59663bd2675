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
from collab_plugin.checkpoint.storage.stored_matrix import Matrix, Opaque, Plain, encode
from collab_plugin.compression.hf_pack_quantized import packed_columns, quantize
from collab_plugin.compression.hf_precision import QUANTIZED_ROLES, Precision, block_of, stored_precision
from collab_plugin.compression.tiles import TILE_BYTES
from collab_plugin.formats.safetensors_header import ITEM_BYTES, Stored
from collab_plugin.formats.safetensors_layout import SafetensorsTensor
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.artifact import kept_of
from collab_plugin.plans.plan import Plan

Piece = tuple[str, int, NDArray[np.generic]]
"""(tensor to write, byte offset in it, values as stored)"""
Span = tuple[str, int, int]
"""(tensor to write, byte offset in it, bytes)"""


@dataclass(frozen=True)
class Output:
    """What one stored matrix becomes.

    ``expert`` is its new number. ``rows`` are the rows to keep in their order (routers), None for all.
    ``quantizable``: a matrix of a block that may have a ``precision``, which quantizes it unless it is stored so
    already. ``widen`` turns packed values into BF16.
    """

    matrix: Matrix
    expert: int | None = None
    rows: tuple[int, ...] | None = None
    quantizable: bool = False
    precision: Precision | None = None
    widen: bool = False

    @property
    def name(self) -> str:
        return self.renamed(self.matrix.name)

    def renamed(self, name: str) -> str:
        """The name of a stored tensor of this matrix in the new folder."""
        return name if self.expert is None else re.sub(r"\.experts\.\d+\.", f".experts.{self.expert}.", name)

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.matrix.shape
        if self.rows is None:
            return stored
        return (1, len(self.rows)) if self.one_row else (len(self.rows), *stored[1:])

    @property
    def one_row(self) -> bool:
        """A value for each expert, stored as a matrix of one row."""
        return self.rows is not None and len(self.matrix.shape) == 2 and self.matrix.shape[0] == 1

    @property
    def dtype(self) -> str:
        """Of widened values, and of the scales of quantized ones."""
        return self.matrix.type.name

    @property
    def quantized(self) -> Precision | None:
        """The precision that values are brought to; None for those that have it."""
        return None if self.precision is None or stored_precision(self.matrix) == self.precision else self.precision

    @property
    def copied(self) -> bool:
        return self.quantized is None and not (self.widen and self.precision is None)

    def tensors(self) -> list[SafetensorsTensor]:
        if self.copied:
            return [SafetensorsTensor(self.renamed(p.name), p.dtype, self._kept(p)) for p in self.matrix.parts]
        if self.quantized is None:
            return [SafetensorsTensor(self.name, self.dtype, self.shape)]
        rows, columns = self.shape
        words = packed_columns(columns, self.quantized.bits)
        return [
            SafetensorsTensor(f"{self.name}_packed", "I32", (rows, words)),
            SafetensorsTensor(f"{self.name}_scale", self.dtype, (rows, columns // self.quantized.group)),
            SafetensorsTensor(f"{self.name}_shape", "I64", (2,)),
        ]

    def _kept(self, part: Stored) -> tuple[int, ...]:
        if self.one_row:
            return self.shape
        return (len(self.rows), *part.shape[1:]) if self.rows is not None and self.by_row(part) else part.shape

    def by_row(self, part: Stored) -> bool:
        """Whether ``part`` has a row for each of the matrix."""
        return part is self.matrix.parts[0] or (len(part.shape) > 0 and part.shape[0] == self.matrix.shape[0])


@dataclass(frozen=True)
class Work:
    """Rows ``start``..``stop`` of the output: at most 32 MiB as float32 (or one row)."""

    output: Output
    start: int
    stop: int

    @property
    def values(self) -> int:
        return prod(self.output.shape[1:]) * (self.stop - self.start)

    def spans(self) -> Iterator[Span]:
        """What `pieces` will write, as far as pieces lie behind each other in one; nothing is read."""
        out, count = self.output, self.stop - self.start
        if out.rows is not None or out.copied:
            for part in out.matrix.parts:
                if out.one_row or out.by_row(part):
                    row = _row_bytes(part) // (part.shape[1] if out.one_row else 1)
                    kept = len(out.rows or ()) if out.one_row else count
                    yield out.renamed(part.name), 0 if out.one_row else self._offset(row), kept * row
                elif self.start == 0:
                    yield out.renamed(part.name), 0, part.stop - part.start
            return
        for tensor in out.tensors():
            rows = tensor.shape[0] if len(tensor.shape) > 1 else 0
            row = tensor.nbytes // rows if rows else 0
            if rows:
                yield tensor.name, self._offset(row), count * row
            elif self.start == 0:
                yield tensor.name, 0, tensor.nbytes

    def pieces(self) -> Iterator[Piece]:
        """Read, check, and convert; CollabError for values that are not finite."""
        out = self.output
        if out.rows is not None:
            yield from self._chosen(out.rows)
            return
        if isinstance(out.matrix, Opaque):
            yield from self._copied()
            return
        where = slice(self.start, self.stop) if len(out.matrix.shape) > 1 else None
        values = check_finite(out.matrix.values(where), out.matrix.name, None)
        if out.quantized is not None:
            yield from self._quantized(values, out.quantized)
        elif not out.copied:
            raw = encode(values, out.matrix.type)
            yield out.name, self._offset(raw.shape[-1]), raw
        else:
            yield from self._copied()

    def _copied(self) -> Iterator[Piece]:
        for part in self.output.matrix.parts:
            if self.output.by_row(part):
                raw = part.read(slice(self.start, self.stop))
                yield self.output.renamed(part.name), self._offset(_row_bytes(part)), raw
            elif self.start == 0:
                yield self.output.renamed(part.name), 0, part.data

    def _chosen(self, rows: tuple[int, ...]) -> Iterator[Piece]:
        """Rows of a router or fused experts as they are stored."""
        matrix = self.output.matrix
        if self.output.one_row:
            check_finite(matrix.values(), matrix.name, None)
            raw = matrix.parts[0].data.reshape(matrix.shape[1], -1)
            yield matrix.name, 0, raw[list(rows)]
            return
        for place, row in enumerate(rows[self.start : self.stop], self.start):
            check_finite(matrix.values(slice(row, row + 1)), matrix.name, None)
            for part in matrix.parts:
                if self.output.by_row(part):
                    yield part.name, place * _row_bytes(part), part.read(slice(row, row + 1))
                elif place == 0:
                    yield part.name, 0, part.data

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
                output = replace(output, precision=precision, widen=not isinstance(output.matrix, Plain))
            yield output
    for stored in checkpoint.beside:
        yield Output(Opaque(stored))


def _of_tensor(checkpoint: SafetensorsCheckpoint, plan: Plan, info: TensorInfo) -> Iterator[Output]:
    kept, matrices = kept_of(info, plan), checkpoint.stored(info.name)
    if not checkpoint.stacked(info.name):
        quantizable = info.role in QUANTIZED_ROLES and info.role != Role.EXPERT and len(info.shape) > 1
        for matrix in matrices:
            yield Output(matrix, rows=kept, quantizable=quantizable)
        return
    for new, old in enumerate(range(len(matrices)) if kept is None else kept):
        yield Output(matrices[old], expert=new, quantizable=True)


def works(outputs: list[Output]) -> Iterator[Work]:
    """The work in pieces of bounded memory."""
    for output in outputs:
        shape = output.shape
        rows = shape[0] if len(shape) > 1 else 1
        step = max(1, TILE_BYTES // (4 * prod(shape[1:], start=1))) if rows > 1 else 1
        for start in range(0, rows, step):
            yield Work(output, start, shape[0] if len(shape) == 1 else min(rows, start + step))


def _row_bytes(stored: Stored) -> int:
    """Of a vector: bytes of one value."""
    return prod(stored.shape[1:], start=1) * ITEM_BYTES[stored.dtype]
