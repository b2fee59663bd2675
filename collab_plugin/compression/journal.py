"""Which tiles of an unfinished output are safely on the disk, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from collab_plugin.formats.output_path import writing


class Journal:
    """A text file: one JSON line naming the job, then one line of tile numbers a sync."""

    def __init__(self, path: Path, file: IO[str], done: set[int]) -> None:
        self.path, self.done, self._file = path, done, file

    @classmethod
    @contextmanager
    def open(cls, path: Path, job: str, part: Path, total: int) -> Iterator[Journal]:
        """Resume the journal at ``path`` when it is of the same job and its data file whole, else start anew.

        A line that was cut off by a crash, or any other damage, ends the list of finished tiles there.
        """
        done = cls._finished(path, job) if part.exists() and part.stat().st_size == total else None
        with writing(path):
            file = path.open("w")
        with file:
            journal = cls(path, file, done or set())
            journal._write(json.dumps({"job": job}) + "\n" + _line(sorted(journal.done)))
            yield journal

    @staticmethod
    def _finished(path: Path, job: str) -> set[int] | None:
        try:
            lines = path.read_text().splitlines(keepends=True)
            if not lines or json.loads(lines[0]) != {"job": job}:
                return None
        except (OSError, ValueError):
            return None
        done: set[int] = set()
        for line in lines[1:]:
            digest, _, numbers = line.rstrip("\n").partition(" ")
            if not line.endswith("\n") or hashlib.sha256(numbers.encode()).hexdigest()[:16] != digest:
                break
            done.update(int(number) for number in numbers.split())
        return done

    def add(self, tiles: list[int]) -> None:
        """Record tiles whose data is synced already."""
        self._write(_line(tiles))
        with writing(self.path):
            os.fsync(self._file.fileno())
        self.done.update(tiles)

    def _write(self, text: str) -> None:
        with writing(self.path):
            self._file.write(text)
            self._file.flush()


def _line(tiles: list[int]) -> str:
    numbers = " ".join(map(str, tiles))
    return f"{hashlib.sha256(numbers.encode()).hexdigest()[:16]} {numbers}\n" if tiles else ""
