"""How much this process and those that it started have read from disks: of a model that is paged, what a step costs."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

SECONDS_BETWEEN = 2.0
"""Looking at all processes takes some milliseconds."""


def bytes_read() -> Callable[[], int | None]:
    """What gives the bytes read since now, by those that run and those that have ended meanwhile; None where the system
    does not tell (macOS). What the page cache held is not read."""
    seen: dict[int, int] = {}
    before = dict(_counts())
    looked = time.monotonic()

    def read() -> int | None:
        nonlocal looked
        if not before:
            return None
        if not seen or time.monotonic() - looked > SECONDS_BETWEEN:
            looked = time.monotonic()
            seen.update(_counts())
        return sum(max(count - before.get(pid, 0), 0) for pid, count in seen.items())

    return read


def _counts() -> list[tuple[int, int]]:
    """(process, bytes it read) of this one and all below it."""
    own = psutil.Process()
    found = []
    for process in (own, *own.children(recursive=True)):
        try:
            found.append((process.pid, int(process.io_counters().read_bytes)))
        except (psutil.Error, AttributeError, OSError):
            continue
    return found
