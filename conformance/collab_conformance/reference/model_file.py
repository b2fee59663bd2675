"""A GGUF's keys and tensors through gguf-py, which shares no code with any engine."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray

from collab_plugin.checkpoint.gguf import shard_paths
from collab_plugin.errors import CollabError

_TEXT = "general.architecture"


@dataclass(frozen=True)
class ModelFile:
    """``keys``: of the architecture, without its prefix. ``tensors`` by name, memory-mapped."""

    path: Path
    architecture: str
    keys: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]

    def values(self, name: str, expert: int | None = None) -> NDArray[np.float32]:
        """Dequantize a tensor, or one expert's slice of it: float32 in numpy's order of axes."""
        tensor = self.tensors[name]
        data = tensor.data if expert is None else tensor.data[expert]
        values: NDArray[np.float32] = dequantize(data, tensor.tensor_type)
        if not np.isfinite(values).all():
            raise CollabError(f"{self.path}: {name} holds values that are not finite; make the file again")
        return values


def open_model(path: Path) -> ModelFile:
    """Open a GGUF, or all shards of a split one. CollabError when gguf-py cannot read it."""
    if not path.is_file():
        raise CollabError(f"{path} is not a file; give a GGUF")
    paths = shard_paths(path)
    readers = [_read(shard) for shard in paths]
    field = readers[0].get_field(_TEXT)
    if field is None or field.types != [GGUFValueType.STRING]:
        raise CollabError(f"{path} has no {_TEXT}: it is not a model")
    architecture = str(field.contents())
    prefix = f"{architecture}."
    keys = {
        name.removeprefix(prefix): field.contents()
        for name, field in readers[0].fields.items()
        if name.startswith(prefix)
    }
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    if len(tensors) != sum(len(reader.tensors) for reader in readers):
        raise CollabError(f"{path}: a tensor is in two shards")
    return ModelFile(path, architecture, keys, tensors)


def _read(path: Path) -> GGUFReader:
    try:
        return GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError, struct.error) as error:
        raise CollabError(f"{path} is no GGUF that gguf-py reads: {' '.join(str(error).split())}") from None
