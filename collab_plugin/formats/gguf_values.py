"""The bytes of GGUF metadata values."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gguf import GGUFValueType

_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def text(value: str) -> bytes:
    """A length-prefixed UTF-8 string."""
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _scalar(value: Any, kind: GGUFValueType) -> bytes:
    return text(value) if kind == GGUFValueType.STRING else struct.pack("<" + _FORMATS[kind], value)


def pack(value: Any, kind: GGUFValueType, subtype: GGUFValueType | None) -> bytes:
    """Type and value of one key, as GGUF stores them; ``subtype`` of an array's elements."""
    if kind != GGUFValueType.ARRAY:
        return struct.pack("<I", kind.value) + _scalar(value, kind)
    if subtype is None or subtype == GGUFValueType.ARRAY:
        raise ValueError("an array needs a scalar or string element type")
    head = struct.pack("<IIQ", kind.value, subtype.value, len(value))
    if subtype == GGUFValueType.STRING:
        return head + b"".join(map(text, value))
    dtype = np.dtype("<u1") if subtype == GGUFValueType.BOOL else np.dtype("<" + _FORMATS[subtype])
    return head + np.asarray(value, dtype).tobytes()


@dataclass(frozen=True)
class MetaValue:
    """One GGUF key's value with its wire type, so that it can be written back unchanged.

    ``subtype`` is the element type when ``type`` is ARRAY, else None.
    """

    value: Any
    type: GGUFValueType
    subtype: GGUFValueType | None = None

    @cached_property
    def packed(self) -> bytes:
        """Type and value as GGUF stores them; kept, because a vocabulary takes a while and is packed often."""
        return pack(self.value, self.type, self.subtype)
