"""GGUF files packed by hand, so that every field can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gguf import GGUFValueType

V = GGUFValueType


def string(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def text_key(name: str, value: str | bytes) -> bytes:
    return key(name, V.STRING, string(value))


def array_key(name: str, kind: int, count: int, values: bytes) -> bytes:
    return key(name, V.ARRAY, struct.pack("<IQ", kind, count) + values)


def tensor(name: str | bytes, dims: Sequence[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    """``dims`` in ggml's order, the row width first."""
    count = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


ARCHITECTURE = text_key("general.architecture", "qwen3moe")


def gguf(
    keys: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    align: int = 32,
) -> bytes:
    head = magic + struct.pack(
        "<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % align) + data
