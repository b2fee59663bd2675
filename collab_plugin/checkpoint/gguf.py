"""GGUF files, single or split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES

from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint, CheckpointFormat, TensorInfo
from collab_plugin.checkpoint.decode import check_finite, decode
from collab_plugin.checkpoint.files.model_files import LocalFiles, ModelFiles, origin_note
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile, LocalFile
from collab_plugin.formats.gguf_header import Header, StoredTensor, read_header
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import layer_of, role_of

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
# What lies beside models and is none: general.type, and the architecture of files from before that key.
_BESIDE = {"mmproj", "imatrix", "adapter", "vocab"}
_VISION = "clip"
_MOST_LOOKED_AT = 8  # a repository of many quantized copies is no folder of one model


@dataclass(frozen=True)
class _Place:
    file: ByteFile
    stored: StoredTensor


class GgufCheckpoint(Checkpoint):
    """See `Checkpoint`. ``path`` is the first file."""

    format = "gguf"

    def __init__(
        self, files: ModelFiles, names: list[str], metadata: Mapping[str, MetaValue], places: Mapping[str, _Place]
    ) -> None:
        self.files, self._names = files, names
        self.path = Path(files.where(names[0]))
        self.metadata = metadata
        self._places = places
        self.notes = origin_note(files)
        self.tensors = {
            name: TensorInfo(name, p.stored.shape, p.stored.type, p.stored.nbytes, role_of(name), layer_of(name))
            for name, p in places.items()
        }

    @property
    def address(self) -> str:
        return self.files.where(self._names[0])

    def local(self) -> Path:
        return self.files.fetch(self._names) / self._names[0]

    def shards(self) -> list[ByteFile]:
        """Its files, in order."""
        return [self.files.open(name) for name in self._names]

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        place = self._places[name]
        stored = place.stored
        block, size = GGML_QUANT_SIZES[stored.type]
        shape = (*stored.shape[:-1], stored.shape[-1] // block * size)
        start = stored.offset
        if expert is not None:
            start, shape = start + expert * prod(shape[1:]), shape[1:]
        if rows is not None:
            first, last, _ = rows.indices(shape[0])
            start, shape = start + first * prod(shape[1:]), (max(last - first, 0), *shape[1:])
        return place.file.read(start, start + prod(shape)).reshape(shape)

    def by_rows(self, name: str) -> bool:
        return isinstance(self.files, LocalFiles)

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        raw = self.read_raw(name, expert=expert, rows=rows)
        return check_finite(decode(raw, self.tensors[name].type), name, expert)


def open_shard(path: Path) -> tuple[Header, ByteFile]:
    """Open one GGUF file and parse its header."""
    file = LocalFile(path)
    return read_header(file), file


def _first_file(files: ModelFiles) -> str:
    if files.named is not None:
        return files.named
    names = _gguf_names(files)
    starts = [name for name in names if not (m := _SHARD.match(name)) or m["no"] == "00001"]
    if 1 < len(starts) <= _MOST_LOOKED_AT:
        starts = [name for name in starts if _is_model(files, name)] or starts
    if len(starts) != 1:
        such = "" if isinstance(files, LocalFiles) or not starts else f", such as {files.where(starts[0])}"
        raise CollabError(f"{files.address} holds {len(starts) or len(names)} GGUF files; name the one to open{such}")
    return starts[0]


def _is_model(files: ModelFiles, name: str) -> bool:
    """False for projectors, importance matrices and adapters, which are published in the folders of models."""
    keys = {key: value.value for key, value in read_header(files.open(name)).metadata.items()}
    return keys.get("general.type") not in _BESIDE and keys.get("general.architecture") != _VISION


def _gguf_names(files: ModelFiles) -> list[str]:
    return [name for name in files.names() if name.endswith(".gguf")]


def shard_paths(path: Path) -> list[Path]:
    """Return all files of the model that ``path`` is a part of; CollabError naming one that is missing."""
    return [path.with_name(name) for name in _shards(LocalFiles(path), path.name)]


def _shards(files: ModelFiles, first: str) -> list[str]:
    found = _SHARD.match(first)
    if not found:
        return [first]
    count = int(found["count"])
    names = [f"{found['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    missing = [name for name in names if not files.has(name)]
    if missing:
        raise CollabError(f"shard missing: {missing[0]} ({len(missing)} of {count}) beside {files.where(first)}")
    return names


def open_gguf(model: Path | ModelFiles) -> GgufCheckpoint:
    """Open a GGUF file, any shard of a split one, or the folder that holds one model."""
    files = model if isinstance(model, ModelFiles) else LocalFiles(model)
    first = _first_file(files)
    metadata: dict[str, MetaValue] = {}
    places: dict[str, _Place] = {}
    promised: set[int] = set()
    names = _shards(files, first)
    for index, shard in enumerate(names):
        file = files.open(shard)
        header = read_header(file)
        count = header.metadata.get("split.count")
        number = header.metadata.get("split.no")
        if count is not None and count.value not in (0, 1) and count.value != len(names):
            raise CollabError(
                f"{file.where} is one of {count.value} shards, but its name says otherwise; "
                f"restore the names NAME-00001-of-{count.value:05d}.gguf"
            )
        if len(names) > 1 and (number is None or number.value != index):
            raise CollabError(f"{file.where} is not shard {index + 1} of its model; restore the shards' names")
        if (stated := header.metadata.get("split.tensors.count")) is not None and isinstance(stated.value, int):
            promised.add(stated.value)
        if index == 0:
            metadata = {k: v for k, v in header.metadata.items() if k not in _SPLIT_KEYS}
        for name, stored in header.tensors.items():
            if name in places:
                raise CollabError(f"tensor {name!r} is in two shards of {files.where(first)}")
            places[name] = _Place(file, stored)
    if len(names) > 1 and promised - {len(places)}:
        raise CollabError(
            f"{files.where(first)}: its shards hold {len(places)} tensors of {max(promised)}: one of them is of "
            "another model or was not written whole; download or make them again"
        )
    architecture = metadata.get("general.architecture")
    if architecture is None or not isinstance(architecture.value, str):
        raise CollabError(f"{files.where(first)} has no general.architecture: it is not a model")
    return GgufCheckpoint(files, names, metadata, places)


def _matches(files: ModelFiles) -> bool:
    if files.named is None:
        return bool(_gguf_names(files))
    return files.has(files.named) and (files.named.endswith(".gguf") or _starts_with_magic(files, files.named))


def _starts_with_magic(files: ModelFiles, name: str) -> bool:
    try:
        return files.open(name).read(0, 4).tobytes() == b"GGUF"
    except CollabError:
        return False


GGUF_FORMAT = CheckpointFormat("gguf", "GGUF files of llama.cpp, single or split", _matches, open_gguf)
