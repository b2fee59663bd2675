"""Importance matrices as other tools write them: GGUF files of llama-imatrix, and its old layout."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from collab_plugin.stats.stats import ImatrixEntry


def write_imatrix(
    path: Path,
    entries: Mapping[str, ImatrixEntry],
    *,
    without: Iterable[str] = (),
    beside: Mapping[str, NDArray[np.floating]] | None = None,
    keys: Mapping[str, int] | None = None,
) -> Path:
    """Sums and counts by weight, and llama-imatrix's own keys alone.

    ``without``: tensors to leave out; ``beside``: tensors to add or to write instead; ``keys``: after "imatrix.".
    """
    tensors: dict[str, NDArray[np.floating]] = {}
    for name, entry in entries.items():
        tensors[f"{name}.in_sum2"] = entry.sum2
        tensors[f"{name}.counts"] = entry.count.reshape(-1, 1).astype(np.float32)
    writer = GGUFWriter(path, "unused")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train.raw"])
    for key, value in {"chunk_count": 10, "chunk_size": 512, **(keys or {})}.items():
        writer.add_uint32(f"imatrix.{key}", value)
    for name, values in {**tensors, **(beside or {})}.items():
        if name not in without:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_old_imatrix(path: Path, entries: Mapping[str, NDArray[np.float32]], *, calls: int = 4) -> Path:
    """The layout before GGUF: all experts of a tensor one after the other, and one count."""
    data = struct.pack("<i", len(entries))
    for name, values in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size)
        data += values.astype("<f4").tobytes()
    dataset = b"wiki.train.raw"
    path.write_bytes(data + struct.pack("<ii", calls, len(dataset)) + dataset)
    return path
