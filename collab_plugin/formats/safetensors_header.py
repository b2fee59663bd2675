"""A strict reader of safetensors headers: offsets and sizes are checked before anything is read.

Ours because the safetensors package hands numpy no bfloat16 and no FP8, which is what is stored.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError
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
    """A tensor in a file: ``data`` is its bytes, uint8[nbytes], a view of the memory map."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """Map ``path`` and return its tensors; CollabError for whatever is not sound."""
    places = read_places(path)
    data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    return {name: Stored(name, p.dtype, p.shape, data[p.start : p.stop]) for name, p in places.items()}


def read_places(path: Path) -> dict[str, Place]:
    """Return where the tensors of ``path`` lie, in the file's order; CollabError for whatever is not sound.

    Reads the header alone, and not through a memory map, for which systems fetch what lies around it.
    """

    def fail(what: str, do: str = "download it again") -> CollabError:
        return CollabError(f"{path} is not a sound safetensors file: {what}; {do}")

    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length == 0:
                raise CollabError(f"{path} is empty")
            if length < 8:
                raise fail("it is shorter than its header")
            size = int.from_bytes(file.read(8), "little")
            if size > min(MAX_HEADER, length - 8):
                file.seek(0)
                if hint := foreign_hint(file.read(HEAD)):
                    raise CollabError(f"{path} is no safetensors file: {hint}")
                raise fail(f"it claims a header of {size} bytes in {length}")
            text = file.read(size)
    except OSError as error:
        raise CollabError(f"{path} cannot be read: {error.strerror}") from None
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
