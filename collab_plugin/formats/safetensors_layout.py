"""Where each tensor goes in a safetensors file, known before anything is written."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from collab_plugin.formats.safetensors_header import ITEM_BYTES

ALIGNMENT = 8  # of the header, so that the data is aligned (safetensors README)
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class SafetensorsTensor:
    """Name, safetensors dtype ("BF16") and shape of a tensor to write."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One file: its ``header`` bytes, each tensor's ``offsets`` from the file's start, and its size."""

    file: str
    header: bytes
    offsets: dict[str, int]
    total: int


def shards_of(tensors: Sequence[SafetensorsTensor], most: int) -> list[Shard]:
    """Cut ``tensors``, in their order, into files of at most ``most`` bytes of data (or one tensor)."""
    parts: list[list[SafetensorsTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if parts[-1] and size + tensor.nbytes > most:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.nbytes
    if len(parts) == 1:
        return [_shard(SINGLE, parts[0])]
    count = len(parts)
    return [_shard(f"model-{i:05d}-of-{count:05d}.safetensors", part) for i, part in enumerate(parts, 1)]


def _shard(file: str, tensors: list[SafetensorsTensor]) -> Shard:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts = {}
    at = 0
    for tensor in tensors:
        starts[tensor.name] = at
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    return Shard(file, header, {name: len(header) + start for name, start in starts.items()}, len(header) + at)
