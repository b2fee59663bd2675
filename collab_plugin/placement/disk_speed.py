"""How fast a file is read at random places, by block size, past the page cache."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from collab_plugin.errors import CollabError

BLOCKS = (4 * 2**10, 64 * 2**10, 256 * 2**10, 2**20, 4 * 2**20)
_SECONDS = 0.4
_MOST = 64 * 2**20


def disk_speeds(path: Path) -> dict[int, float]:
    """Block size -> bytes a second, each for at most 0.4 s and 64 MiB. Pages that are in memory are dropped first
    where the system allows it; where it does not (no posix_fadvise), nothing is measured.

    CollabError when the file cannot be read.
    """
    if not hasattr(os, "posix_fadvise"):
        return {}
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    try:
        size = os.fstat(descriptor).st_size
        return {block: _speed(descriptor, size, block) for block in BLOCKS if size >= 4 * block}
    finally:
        os.close(descriptor)


def _speed(descriptor: int, size: int, block: int) -> float:
    places = list(range(0, size - block + 1, block))
    random.Random(block).shuffle(places)
    places = places[: _MOST // block]
    # All of them first: telling the kernel takes time of its own.
    for place in places:
        os.posix_fadvise(descriptor, place, block, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # what was asked for, without reading ahead
    read, start = 0, time.perf_counter()
    for place in places:
        read += len(os.pread(descriptor, block, place))
        if time.perf_counter() - start > _SECONDS:
            break
    return read / (time.perf_counter() - start)
