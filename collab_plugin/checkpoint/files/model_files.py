"""The files of a model, wherever they lie: which there are, bytes of one, and copies on this machine."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile, Bytes, LocalFile
from collab_plugin.formats.output_path import check_utf8

BLOCK = 2**15
"""Bytes that a short read far away fetches, for the next short read is often beside it: scales, parts of a header."""
HELD_BLOCKS = 512
LOCKS = 64
"""Of a file: threads that want the same block wait for the first, those of blocks that share a lock for nothing."""

_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_LICENCES = ("license", "licence", "notice")


def is_companion(name: str) -> bool:
    """True for a file that belongs to a model beside its weights: configuration, tokenizer, templates, licence."""
    return Path(name).suffix in _COMPANIONS or name.lower().startswith(_LICENCES)


class ModelFiles(ABC):
    """The files of one model, which do not change while they are read.

    ``address`` names the model in messages and documents, with the revision where there is one; ``name`` is what the
    model is called. ``named``: the file that was given, None for a folder.
    """

    address: str
    name: str
    named: str | None

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the folder's files in order."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """True when the folder has the file ``name``."""

    @abstractmethod
    def open(self, name: str) -> ByteFile:
        """The file ``name`` of the folder, of which only what is asked for is read."""

    @abstractmethod
    def fetch(self, names: Sequence[str]) -> Path:
        """The folder of this machine that has the files ``names``, fetched first where they lie elsewhere.

        CollabError when they cannot be had, or the disk is full.
        """

    def where(self, name: str) -> str:
        """How messages name a file of the folder."""
        return f"{self.address}/{name}"

    def companions(self) -> Path:
        """The folder of this machine that has everything but the weights."""
        return self.fetch([name for name in self.names() if is_companion(name)])


class LocalFiles(ModelFiles):
    """A folder of this machine, or one file of it."""

    def __init__(self, path: Path) -> None:
        check_utf8(path)
        if not path.exists():
            raise CollabError(f"{path} does not exist")
        self.path = path
        self.folder, self.named = (path, None) if path.is_dir() else (path.parent, path.name)
        self.address, self.name = str(path), path.resolve().name

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if not path.is_dir())

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def open(self, name: str) -> ByteFile:
        return LocalFile(self.folder / name)

    def fetch(self, names: Sequence[str]) -> Path:
        return self.folder

    def where(self, name: str) -> str:
        return str(self.folder / name)


def origin_note(files: ModelFiles) -> tuple[str, ...]:
    """Where a model that is not on this machine was read, with its revision: what plans record."""
    return () if isinstance(files, LocalFiles) else (f"read from {files.address}",)


class DistantFile(ByteFile):
    """A file that is read over a network: short reads come from blocks, of which the last few are held."""

    def __init__(self, where: str, size: int | None) -> None:
        if size is None:
            raise CollabError(f"{where} has no size that its server tells; download the model and give the folder")
        if not size:
            raise CollabError(f"{where} is empty")
        self.where, self.size, self._last = where, size, threading.local()
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    @abstractmethod
    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, in one request; CollabError when they cannot be had."""

    def read(self, start: int, stop: int) -> Bytes:
        if stop - start >= BLOCK:
            held = getattr(self._last, "range", None)
            if held is None or held[:2] != (start, stop):  # values are read to check them, then as they are stored
                held = self._last.range = (start, stop, self._exactly(start, stop))
            return np.frombuffer(held[2], np.uint8)
        first, last = start // BLOCK, -(-stop // BLOCK)
        held = b"".join(map(self._block, range(first, last)))
        return np.frombuffer(held[start - first * BLOCK : stop - first * BLOCK], np.uint8)

    def _block(self, number: int) -> bytes:
        """A block, fetched once however many threads want it."""
        with self._locks[number % LOCKS]:
            return _held_block(self, number)

    def _exactly(self, start: int, stop: int) -> bytes:
        data = self.fetch(start, stop)
        if len(data) != stop - start:
            raise CollabError(
                f"{self.where}: {len(data):,} bytes came where {stop - start:,} were asked for; does the server read "
                "ranges of files? Else download the model and give the folder"
            )
        return data


@lru_cache(HELD_BLOCKS)
def _held_block(file: DistantFile, number: int) -> bytes:
    return file._exactly(number * BLOCK, min((number + 1) * BLOCK, file.size))
