"""Which tiles of an unfinished output are safely on the disk, and their checksums, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from collab_plugin.formats.output_path import writing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def checksum(data: Buffer, before: str = "0") -> str:
    """8 hexadecimal digits of a tile's bytes: their CRC-32, as file systems have it. ``before``: of what lies before
    ``data``."""
    return f"{zlib.crc32(data, int(before, 16)):08x}"


class Journal:
    """A text file: one JSON line naming the job, then one line a sync of tile numbers, each with its tile's checksum.

    ``done``: checksums by tile.
    """

    def __init__(self, path: Path, file: IO[str], done: dict[int, str]) -> None:
        self.path, self.done, self._file = path, done, file

    @classmethod
    @contextmanager
    def open(cls, path: Path, job: str, parts: Mapping[Path, int]) -> Iterator[Journal]:
        """Resume the journal at ``path`` when it is of the same job and its data files whole, else start anew.

        ``parts``: those files and their sizes.

        A line that was cut off by a crash, or any other damage, ends the list of finished tiles there.
        """
        whole = all(part.exists() and part.stat().st_size == total for part, total in parts.items())
        done = cls._finished(path, job) if whole else None
        with writing(path):
            file = path.open("w")
        with file:
            journal = cls(path, file, done or {})
            journal._write(json.dumps({"job": job}) + "\n" + _line(journal.done))
            yield journal

    @staticmethod
    def _finished(path: Path, job: str) -> dict[int, str] | None:
        try:
            lines = path.read_text().splitlines(keepends=True)
            if not lines or json.loads(lines[0]) != {"job": job}:
                return None
        except (OSError, ValueError):
            return None
        done: dict[int, str] = {}
        for line in lines[1:]:
            digest, _, tiles = line.rstrip("\n").partition(" ")
            if not line.endswith("\n") or hashlib.sha256(tiles.encode()).hexdigest()[:16] != digest:
                break
            for entry in tiles.split():
                number, _, sum_ = entry.partition(":")
                done[int(number)] = sum_
        return done

    def add(self, tiles: Mapping[int, str]) -> None:
        """Record tiles whose data is synced already, with their checksums."""
        self._write(_line(tiles))
        with writing(self.path):
            os.fsync(self._file.fileno())
        self.done.update(tiles)

    def _write(self, text: str) -> None:
        with writing(self.path):
            self._file.write(text)
            self._file.flush()


def _line(tiles: Mapping[int, str]) -> str:
    text = " ".join(f"{number}:{sum_}" for number, sum_ in sorted(tiles.items()))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n" if tiles else ""
