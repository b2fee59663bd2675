"""What a checkpoint stores of one matrix, whatever the format, and how its values are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32, Bytes
from collab_plugin.checkpoint.decode import bf16_to_f32
from collab_plugin.checkpoint.storage.small_floats import e8m0_to_f32, round_to_bf16
from collab_plugin.errors import CollabError
from collab_plugin.formats.safetensors_header import Stored

_FLOATS = {"F32": Type.F32, "F16": Type.F16, "BF16": Type.BF16, "F64": Type.F32}
Rows = slice | NDArray[np.intp]
"""Rows to read: a range, or row numbers in the order wanted."""
SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
"""Dtypes of scales; U8 holds the exponents of E8M0."""


class Matrix(ABC):
    """``name`` and ``shape`` are the matrix's own, packed or not.

    ``parts``: the stored tensors that hold it, values first, scales behind. ``type``: the float type that `values` are
    exact in. ``native``: the GGUF type that holds the stored codes and scales as they are, None where there is none.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Stored, ...]
    type: Type
    native: Type | None = None

    @abstractmethod
    def values(self, rows: Rows | None = None) -> F32:
        """Float32 of all, or of ``rows`` of the first axis."""

    def native_rows(self, rows: Rows | None = None) -> Bytes:
        """uint8[..., row bytes] at ``native``, bits moved and nothing computed. TypeError without one."""
        raise TypeError(f"{self.name} has no native type")


class Plain(Matrix):
    """Floats as they are."""

    def __init__(self, stored: Stored) -> None:
        if stored.dtype not in _FLOATS:
            raise CollabError(f"{stored.name} is stored as {stored.dtype} without what it is scaled by")
        self.name, self.shape, self.parts, self.type = stored.name, stored.shape, (stored,), _FLOATS[stored.dtype]

    def values(self, rows: Rows | None = None) -> F32:
        return floats(self.parts[0], rows)


class WholeNumbers(Matrix):
    """Numbers that are no weights, such as ids of experts: I32 in a GGUF."""

    def __init__(self, stored: Stored) -> None:
        self.name, self.shape, self.parts, self.type = stored.name, stored.shape, (stored,), Type.I32

    def values(self, rows: Rows | None = None) -> F32:
        """Exact up to 2^24."""
        raw = stored_rows(self.parts[0], rows)
        return raw.view({"I32": "<i4", "I64": "<i8"}[self.parts[0].dtype]).astype(np.float32)


class Opaque(Matrix):
    """A tensor that is copied and never read, whatever it holds."""

    def __init__(self, stored: Stored) -> None:
        self.name, self.shape, self.parts, self.type = stored.name, stored.shape or (1,), (stored,), Type.F32

    def values(self, rows: Rows | None = None) -> F32:
        raise TypeError(f"{self.name} is only copied")


def stored_rows(stored: Stored, rows: Rows | None = None) -> Bytes:
    """uint8[rows, ..., bytes of the last axis] of a stored tensor, contiguous."""
    if rows is None or (isinstance(rows, slice) and rows.step in (None, 1)):
        return stored.read(rows)
    wanted = np.arange(stored.shape[0])[rows]
    first, last = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
    between = stored.read(slice(first, last))
    chosen = between.reshape(last - first, -1)[wanted - first]
    return chosen.reshape(len(wanted), *between.shape[1:]) if len(stored.shape) > 1 else chosen.reshape(-1)


def floats(stored: Stored, rows: Rows | None = None) -> F32:
    """Float32 of a stored tensor of plain floats, or of scales (`SCALES`)."""
    raw = stored_rows(stored, rows)
    if stored.dtype == "BF16":
        return bf16_to_f32(raw.view("<u2"))
    if stored.dtype in ("F8_E8M0", "U8"):
        return e8m0_to_f32(raw)
    return raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[stored.dtype]).astype(np.float32, copy=False)


def encode(values: F32, kind: Type) -> Bytes:
    """Float32 to uint8[..., row bytes] of a float type or I32; exact for values that came from it."""
    values = np.ascontiguousarray(values)
    if kind == Type.I32:
        return values.astype("<i4").view(np.uint8)
    if kind == Type.F32:
        return values.view(np.uint8)
    if kind == Type.F16:
        return values.astype(np.float16).view(np.uint8)
    return round_to_bf16(values).view(np.uint8)


def as_stored_type(values: F32, kind: Type) -> F32:
    """Values rounded to BF16 or F16, as a copy at that type would be."""
    if kind == Type.F16:
        return values.astype(np.float16).astype(np.float32)
    return bf16_to_f32(round_to_bf16(values))


def scale_index(length: int, block: int, rows: Rows | None = None) -> NDArray[np.intp]:
    """For each of ``rows`` the place of its scale, with one for ``block`` of them."""
    return np.arange(length)[rows if rows is not None else slice(None)] // block


def need_shape(stored: Stored, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], what: str) -> None:
    """CollabError for a tensor beside the values that has another shape or dtype than is understood."""
    if stored.shape in shapes and stored.dtype in dtypes:
        return
    wanted = " or ".join(str(shape) for shape in shapes)
    raise CollabError(
        f"{stored.name} has shape {stored.shape}, {wanted} is needed, {' or '.join(dtypes)} and not {stored.dtype}: "
        f"{what}"
    )
