"""Bytes of a file, asked for by ranges: what is asked for is read, wherever the file lies, and nothing around it."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError

Bytes = NDArray[np.uint8]


class ByteFile(ABC):
    """A file of ``size`` bytes that does not change. ``where`` names it in messages. Read from any thread."""

    where: str
    size: int

    @abstractmethod
    def read(self, start: int, stop: int) -> Bytes:
        """Bytes ``start`` to ``stop`` (within the file) in memory of their own: uint8[stop - start].

        CollabError when they cannot be read.
        """


class LocalFile(ByteFile):
    """A file of this machine, open as long as somebody holds this.

    It is read and not mapped: pages of a mapped terabyte count as this process's memory, and nobody can tell them
    from a leak; and a file that was cut short is an error here, a killed process there.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._handle)
            self.size = os.fstat(self._handle).st_size
        except OSError as error:
            raise CollabError(f"{path} cannot be read: {error.strerror}") from None
        if not self.size:
            raise CollabError(f"{path} is empty")
        self._turn = threading.Lock()

    def read(self, start: int, stop: int) -> Bytes:
        data = np.empty(stop - start, np.uint8)
        left, at = data.data, start
        while left:  # a system reads at most 2 GiB in one go
            try:
                count = self._some(left, at)
            except OSError as error:
                raise CollabError(f"{self.where} cannot be read: {error.strerror}") from None
            if not count:
                raise CollabError(f"{self.where} ends at {at:,} bytes and had {self.size:,}: it was changed meanwhile")
            left, at = left[count:], at + count
        return data

    def _some(self, into: memoryview, at: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [into], at)
        with self._turn:  # macOS before 11, Windows
            os.lseek(self._handle, at, os.SEEK_SET)
            got = os.read(self._handle, len(into))
        into[: len(got)] = got
        return len(got)


class Cursor:
    """Reads a file from its start to wherever a header ends, in pieces that grow from ``FIRST`` to ``MOST`` bytes."""

    FIRST, MOST = 2**16, 2**22

    def __init__(self, file: ByteFile) -> None:
        self.file, self.at = file, 0
        self._pieces = self._coming()
        self._held, self._start = b"", 0

    @property
    def left(self) -> int:
        return self.file.size - self.at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, which the caller knows to be there."""
        begin = self.at - self._start
        if begin + size > len(self._held):
            parts, have = [self._held[begin:]], len(self._held) - begin
            while have < size:
                parts.append(next(self._pieces))
                have += len(parts[-1])
            self._held, self._start, begin = b"".join(parts), self.at, 0
        self.at += size
        return self._held[begin : begin + size]

    def _coming(self) -> Iterator[bytes]:
        at, size = 0, self.FIRST
        while at < self.file.size:
            stop = min(at + size, self.file.size)
            yield self.file.read(at, stop).tobytes()
            at, size = stop, min(2 * size, self.MOST)
