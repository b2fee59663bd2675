"""A limit on the memory of a process and its page cache, where this system lets us set one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(size: int) -> Iterator[Callable[[], None] | None]:
    """What a child process calls first (``preexec_fn``) to be under the limit of ``size`` bytes; None without one."""
    made = _made(size)
    if made is None:
        yield None
        return

    def join() -> None:
        (made / "cgroup.procs").write_text(str(os.getpid()))

    try:
        yield join
    finally:
        with suppress(OSError):
            made.rmdir()


def _made(size: int) -> Path | None:
    """A control group of our own: version 2's, or version 1's."""
    try:
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    except OSError:
        return None
    for parent, file in (
        (ROOT / own.get("", "/").lstrip("/"), "memory.max"),
        (ROOT / "memory" / own.get("memory", "/").lstrip("/"), "memory.limit_in_bytes"),
    ):
        group = parent / f"collab-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if not (group / "cgroup.procs").exists():  # the folder that holds version 1's is no control group itself
            group.rmdir()
            continue
        try:
            (group / file).write_text(str(size))
        except OSError:
            group.rmdir()
            continue
        return group
    return None
