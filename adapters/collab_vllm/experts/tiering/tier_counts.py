"""What tiers did, counted by workers and read by the process that answers for metrics: numbers in a shared file."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

FOLDER = "COLLAB_TIER_COUNTS"
"""Environment variable of workers: the folder that their files are in."""
FIELDS = ("hits", "host", "copied", "bytes", "moves")
"""Choices of experts that were in the fast memory, that the processor computed, and for which weights were copied;
bytes copied to the fast memory; experts that came to stay there."""


class TierCounts:
    """Of one worker, ``rank`` among those that see the same tokens; in memory alone where nobody reads them."""

    def __init__(self, rank: int) -> None:
        folder = os.environ.get(FOLDER)
        self._values: np.ndarray[tuple[int], np.dtype[np.int64]] = np.zeros(len(FIELDS), np.int64)
        if folder is not None and Path(folder).is_dir():
            path = Path(folder) / f"{rank}.{os.getpid()}"
            self._values = np.memmap(path, np.int64, "w+", shape=(len(FIELDS),))

    def add(self, **counts: int) -> None:
        for name, count in counts.items():
            self._values[FIELDS.index(name)] += count

    def so_far(self) -> dict[str, int]:
        return dict(zip(FIELDS, map(int, self._values), strict=True))


def new_folder() -> None:
    """Have workers that start from now on count in a folder of their own, which lasts as long as this process."""
    folder = tempfile.mkdtemp(prefix="collab-tiers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[FOLDER] = folder


def counted() -> Iterator[tuple[int, Mapping[str, int]]]:
    """Rank and counts, by rank; of pipeline stages and engines of one rank the sums."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return
    sums: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
    for path in Path(folder).glob("*.*"):
        values = np.fromfile(path, np.int64)
        if len(values) == len(FIELDS):
            rank = int(path.name.partition(".")[0])
            sums[rank] = sums.get(rank, np.zeros(len(FIELDS), np.int64)) + values
    for rank, values in sorted(sums.items()):
        yield rank, dict(zip(FIELDS, map(int, values), strict=True))
