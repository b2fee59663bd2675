"""A strict reader of safetensors headers: offsets and sizes are checked before anything is read.

Ours because the safetensors package hands numpy no bfloat16 and no FP8, which is what is stored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
              "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # fmt: skip
MAX_HEADER = 100_000_000  # the format's own limit (safetensors README)


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
    try:
        data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise CollabError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CollabError(f"{path} is empty") from None

    def fail(what: str) -> CollabError:
        return CollabError(f"{path} is not a sound safetensors file: {what}; download it again")

    if len(data) < 8:
        raise fail("it is shorter than its header")
    size = int(data[:8].view("<u8")[0])
    if size > min(MAX_HEADER, len(data) - 8):
        raise fail(f"it claims a header of {size} bytes in {len(data)}")
    try:
        header = json.loads(data[8 : 8 + size].tobytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise fail(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise fail("its header is no JSON object")
    header.pop("__metadata__", None)
    body = data[8 + size :]
    found: dict[str, Stored] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _start(item[1])):
        problem, start, stop = _check(entry, len(body), end)
        if problem:
            raise fail(f"tensor {name!r} {problem}")
        end = stop
        found[name] = Stored(name, entry["dtype"], tuple(entry["shape"]), body[start:stop])
    return found


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
        return f"has the unknown dtype {str(entry['dtype'])[:20]!r}", 0, 0
    if len(offsets) != 2 or not free_from <= offsets[0] <= offsets[1] <= body:
        return f"lies at {offsets} in {body} bytes of data, or overlaps another", 0, 0
    if len(shape) > 8 or math.prod(shape) * ITEM_BYTES[entry["dtype"]] != offsets[1] - offsets[0]:
        return f"has shape {shape} and {offsets[1] - offsets[0]} bytes, which do not agree", 0, 0
    return "", offsets[0], offsets[1]
