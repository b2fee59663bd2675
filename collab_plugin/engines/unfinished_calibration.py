"""What a calibration has done so far, kept in a file from time to time: the same one goes on there after a stop.

Engines do this in their child processes, a foreign Python's among them.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from collab_plugin import __version__
from collab_plugin.formats.atomic_write import sync_folder
from collab_plugin.formats.output_path import writing

AT_MOST = 0.05
"""Share of the time that is spent on keeping: a large model's sums take gigabytes."""
JOB, DONE = "job", "done"
UNFINISHED = ".unfinished"
"""What is kept for a stats file has its name with this behind it: not PARTIAL, under which the stats themselves are
written, so that what was kept survives a disk that is full then."""


class Sums(Protocol):
    """What a calibration adds up, as arrays of any names but `JOB` and `DONE`."""

    def state(self) -> Mapping[str, NDArray[Any]]:
        """All of it, between two batches."""

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `state` gave, so that what is added from here on ends in the same sums."""


class UnfinishedCalibration:
    """The file ``path``; with "" nothing is kept. What it has counts for the same ``key`` alone (`calibration_key`),
    and a file that is damaged does not count. It is written not more often than every ``save_seconds`` (0: after each
    batch), and less often where that takes long (`AT_MOST`)."""

    def __init__(self, path: str, key: str, save_seconds: float) -> None:
        self._path = Path(path) if path else None
        self._key = key
        self._least = save_seconds
        self._next = time.monotonic() + self._least

    def resume(self, sums: Sums) -> int:
        """Give ``sums`` what was kept; how many windows that were."""
        if self._path is None:
            return 0
        _new(self._path).unlink(missing_ok=True)  # of a run that was stopped while it wrote
        if not self._path.is_file():
            return 0
        try:
            with np.load(self._path, allow_pickle=False) as found:
                if str(found[JOB]) != self._key:
                    return 0
                arrays = {name: found[name] for name in found.files if name not in (JOB, DONE)}
                done = int(found[DONE])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return 0
        sums.restore(arrays)
        return done

    def keep(self, sums: Sums, done: int) -> None:
        """Keep what ``done`` windows gave, when it is time to. CollabError when the system refuses; what was kept
        before then stays."""
        begun = time.monotonic()
        if self._path is None or begun < self._next:
            return
        self._write(self._path, {JOB: np.array(self._key), DONE: np.array(done), **sums.state()})
        took = time.monotonic() - begun
        self._next = time.monotonic() + (max(self._least, took / AT_MOST) if self._least else 0)

    @staticmethod
    def _write(path: Path, arrays: dict[str, Any]) -> None:
        part = _new(path)
        try:
            with writing(path):
                with part.open("wb") as file:
                    np.savez(file, **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
                sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def calibration_key(engine: str, files: Iterable[Path], windows: Sequence[NDArray[np.int64]], options: object) -> str:
    """Tell apart calibrations whose sums could differ: by the ``engine`` with its version, the model's ``files`` (name,
    size and time of change), the token ids of ``windows`` in their order, and ``options``, whose repr must be the same
    in every process. Hexadecimal."""
    digest = hashlib.sha256(repr((__version__, engine, options)).encode())
    for path in files:
        about = path.stat()
        digest.update(f"\n{path.name} {about.st_size} {about.st_mtime_ns}".encode())
    for window in windows:
        digest.update(f"\n{len(window)} ".encode() + np.ascontiguousarray(window, np.int64).tobytes())
    return digest.hexdigest()


def _new(path: Path) -> Path:
    """What is written before it takes the place of ``path``."""
    return path.with_name(path.name + ".new")
