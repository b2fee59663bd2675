"""GGUF files, single or split, memory-mapped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint, CheckpointFormat, TensorInfo
from collab_plugin.checkpoint.decode import check_finite, decode
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_header import Header, StoredTensor, read_header
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import layer_of, role_of

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
# What lies beside models and is none: general.type, and the architecture of files from before that key.
_BESIDE = {"mmproj", "imatrix", "adapter", "vocab"}
_VISION = "clip"


@dataclass(frozen=True)
class _Place:
    data: NDArray[np.uint8]
    stored: StoredTensor


class GgufCheckpoint(Checkpoint):
    """See `Checkpoint`. ``path`` is the first file."""

    format = "gguf"

    def __init__(self, path: Path, metadata: Mapping[str, MetaValue], places: Mapping[str, _Place]) -> None:
        self.path = path
        self.metadata = metadata
        self._places = places
        self.notes = ()
        self.tensors = {
            name: TensorInfo(name, p.stored.shape, p.stored.type, p.stored.nbytes, role_of(name), layer_of(name))
            for name, p in places.items()
        }

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        place = self._places[name]
        stored = place.stored
        block, size = GGML_QUANT_SIZES[stored.type]
        shape = (*stored.shape[:-1], stored.shape[-1] // block * size)
        view = place.data[stored.offset : stored.offset + stored.nbytes].reshape(shape)
        if expert is not None:
            view = view[expert]
        if rows is not None:
            view = view[rows]
        return view

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        raw = self.read_raw(name, expert=expert, rows=rows)
        return check_finite(decode(raw, self.tensors[name].type), name, expert)


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except ValueError:
        raise CollabError(f"{path} is empty") from None
    except OSError as error:
        raise CollabError(f"{path} cannot be read: {error.strerror}") from None


def open_shard(path: Path) -> tuple[Header, NDArray[np.uint8]]:
    """Map one GGUF file and parse its header; the data is uint8[file size]."""
    data = _map(path)
    return read_header(path, data), data


def _first_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.gguf"))
    starts = [f for f in files if not (m := _SHARD.match(f.name)) or m["no"] == "00001"]
    if len(starts) > 1:
        starts = [f for f in starts if _is_model(f)] or starts
    if len(starts) != 1:
        raise CollabError(f"{path} holds {len(starts) or len(files)} GGUF files; name the one to open")
    return starts[0]


def _is_model(path: Path) -> bool:
    """False for projectors, importance matrices and adapters, which are published in the folders of models."""
    keys = {key: value.value for key, value in open_shard(path)[0].metadata.items()}
    return keys.get("general.type") not in _BESIDE and keys.get("general.architecture") != _VISION


def shard_paths(path: Path) -> list[Path]:
    """Return all files of the model that ``path`` is a part of; CollabError naming one that is missing."""
    found = _SHARD.match(path.name)
    if not found:
        return [path]
    count = int(found["count"])
    paths = [path.with_name(f"{found['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise CollabError(f"shard missing: {missing[0]} ({len(missing)} of {count}) beside {path}")
    return paths


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF file, any shard of a split one, or the folder that holds one model."""
    first = _first_file(path)
    metadata: dict[str, MetaValue] = {}
    places: dict[str, _Place] = {}
    promised: set[int] = set()
    paths = shard_paths(first)
    for index, shard in enumerate(paths):
        header, data = open_shard(shard)
        count = header.metadata.get("split.count")
        number = header.metadata.get("split.no")
        if count is not None and count.value not in (0, 1) and count.value != len(paths):
            raise CollabError(
                f"{shard} is one of {count.value} shards, but its name says otherwise; "
                f"restore the names NAME-00001-of-{count.value:05d}.gguf"
            )
        if len(paths) > 1 and (number is None or number.value != index):
            raise CollabError(f"{shard} is not shard {index + 1} of its model; restore the shards' names")
        if (stated := header.metadata.get("split.tensors.count")) is not None and isinstance(stated.value, int):
            promised.add(stated.value)
        if index == 0:
            metadata = {k: v for k, v in header.metadata.items() if k not in _SPLIT_KEYS}
        for name, stored in header.tensors.items():
            if name in places:
                raise CollabError(f"tensor {name!r} is in two shards of {first}")
            places[name] = _Place(data, stored)
    if len(paths) > 1 and promised - {len(places)}:
        raise CollabError(
            f"{first}: its shards hold {len(places)} tensors of {max(promised)}: one of them is of another model or "
            "was not written whole; download or make them again"
        )
    architecture = metadata.get("general.architecture")
    if architecture is None or not isinstance(architecture.value, str):
        raise CollabError(f"{first} has no general.architecture: it is not a model")
    return GgufCheckpoint(paths[0], metadata, places)


def _matches(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*.gguf"))
    return path.is_file() and (path.suffix == ".gguf" or _starts_with_magic(path))


def _starts_with_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


GGUF_FORMAT = CheckpointFormat("gguf", "GGUF files of llama.cpp, single or split", _matches, open_gguf)
