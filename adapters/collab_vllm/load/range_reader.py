"""Ranges of a file into buffers: what is asked for is read, nothing around it.

A memory map fetches whatever the system reads ahead, megabytes around each page; here the system is told which
ranges come next instead.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from collab_plugin.errors import CollabError

Range = tuple[int, int]
"""Half-open, in bytes."""
AHEAD = 64 * 2**20
"""Bytes that the system is asked to fetch before they are read: what keeps a disk's queue filled."""


class RangeReader:
    """Reads ``ranges`` of a file, in their order, each once. Use as a context."""

    def __init__(self, path: Path, ranges: Sequence[Range]) -> None:
        self._path = path
        self._coming = deque(merged(ranges))
        self._advised = 0
        self._read = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("rb", buffering=0)
        self._advise(0, 0, "POSIX_FADV_RANDOM")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``start``; CollabError when the file ends before."""
        self._fetch_ahead()
        self._file.seek(start)
        filled = 0
        while filled < len(buffer):  # a system reads at most 2 GiB in one go
            count = self._file.readinto(buffer[filled:])
            if not count:
                raise CollabError(f"{self._path} ends at {start + filled} bytes; download it again")
            filled += count
        self._read += filled

    def _fetch_ahead(self) -> None:
        while self._coming and self._advised - self._read < AHEAD:
            start, stop = self._coming.popleft()
            if stop - start > AHEAD:
                self._coming.appendleft((start + AHEAD, stop))
                stop = start + AHEAD
            self._advise(start, stop - start, "POSIX_FADV_WILLNEED")
            self._advised += stop - start

    def _advise(self, start: int, length: int, advice: str) -> None:
        """Tell the system, where it listens: macOS has no such call."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), start, length, getattr(os, advice))


def merged(ranges: Sequence[Range]) -> list[Range]:
    """``ranges`` with those made one that follow each other without a gap."""
    found: list[Range] = []
    for start, stop in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
