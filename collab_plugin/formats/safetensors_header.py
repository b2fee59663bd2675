"""A strict reader of safetensors headers: offsets and sizes are checked before anything is read.

Ours because the safetensors package hands numpy no bfloat16 and no FP8, which is what is stored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile, Bytes, Cursor
from collab_plugin.formats.foreign_file import HEAD, foreign_hint

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
              "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # fmt: skip
MAX_HEADER = 100_000_000  # the format's own limit (safetensors README)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes ``start`` to ``stop`` of its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; its bytes are read when they are asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: ByteFile
    start: int
    stop: int

    @property
    def data(self) -> Bytes:
        """All of its bytes: uint8[nbytes]."""
        return self.file.read(self.start, self.stop)

    def read(self, rows: slice | None = None) -> Bytes:
        """Its bytes, or those of ``rows`` of axis 0 alone (a step of one): uint8 of that shape, the last axis in
        bytes."""
        if not self.shape:
            return self.data
        count, item = self.shape[0], ITEM_BYTES[self.dtype]
        first, last, _ = (rows or slice(None)).indices(count)
        size = (self.stop - self.start) // max(count, 1)
        raw = self.file.read(self.start + first * size, self.start + max(first, last) * size)
        inner = (*self.shape[1:-1], self.shape[-1] * item) if len(self.shape) > 1 else ()
        return raw.reshape(max(last - first, 0), *inner) if inner else raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def read_header(file: ByteFile) -> dict[str, Stored]:
    """Return the tensors of ``file``, reading the header alone; CollabError for whatever is not sound."""
    places = read_places(file)
    return {name: Stored(name, p.dtype, p.shape, file, p.start, p.stop) for name, p in places.items()}


def read_places(file: ByteFile) -> dict[str, Place]:
    """Return where the tensors of ``file`` lie, in the file's order; CollabError for whatever is not sound."""

    def fail(what: str, do: str = "download it again") -> CollabError:
        return CollabError(f"{file.where} is not a sound safetensors file: {what}; {do}")

    length, cursor = file.size, Cursor(file)
    if length < 8:
        raise fail("it is shorter than its header")
    size = int.from_bytes(cursor.take(8), "little")
    if size > min(MAX_HEADER, length - 8):
        if hint := foreign_hint(file.read(0, min(HEAD, length)).tobytes()):
            raise CollabError(f"{file.where} is no safetensors file: {hint}")
        raise fail(f"it claims a header of {size} bytes in {length}")
    text = cursor.take(size)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise fail(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise fail("its header is no JSON object")
    header.pop("__metadata__", None)
    body = 8 + size
    found: dict[str, Place] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _start(item[1])):
        problem, start, stop = _check(entry, length - body, end)
        if problem:
            unknown = problem.startswith(_UNKNOWN)
            raise fail(f"tensor {name!r} {problem}", "give the original" if unknown else "download it again")
        end = stop
        found[name] = Place(entry["dtype"], tuple(entry["shape"]), body + start, body + stop)
    return found


_UNKNOWN = "has the unknown dtype"


def _start(entry: Any) -> int:
    try:
        value = entry["data_offsets"][0]
    except (TypeError, KeyError, IndexError):
        return -1
    return value if type(value) is int else -1


def _check(entry: Any, body: int, free_from: int) -> tuple[str, int, int]:
    """Return what is wrong with a header entry ("" when nothing) and its offsets."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "has no dtype, shape and data_offsets", 0, 0
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(isinstance(v, list) and all(type(n) is int and n >= 0 for n in v) for v in (shape, offsets)):
        return "has a shape or offsets that are no lists of numbers", 0, 0
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in ITEM_BYTES:
        return f"{_UNKNOWN} {str(entry['dtype'])[:20]!r}", 0, 0
    if len(offsets) != 2 or not free_from <= offsets[0] <= offsets[1] <= body:
        return f"lies at {offsets} in {body} bytes of data, or overlaps another", 0, 0
    if len(shape) > 8 or math.prod(shape) * ITEM_BYTES[entry["dtype"]] != offsets[1] - offsets[0]:
        return f"has shape {shape} and {offsets[1] - offsets[0]} bytes, which do not agree", 0, 0
    return "", offsets[0], offsets[1]
