"""How much memory a model may take here: what is free, or what the control groups of this process leave."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Version:
    """Where a version of control groups tells its figures: the controller in /proc/self/cgroup, and the names of the
    limit, of what is used, and in memory.stat of pages of files and of those among them that have no file to go to."""

    controller: str
    limit: str
    used: str
    files: str
    shared: str


_VERSIONS = (
    _Version("", "memory.max", "memory.current", "file", "shmem"),
    _Version("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
)


def usable_memory() -> int:
    """Bytes that can still be taken, pages of files among them, which the system gives up for others: the least of what
    the system has available and what the control groups of this process leave."""
    return min([psutil.virtual_memory().available, *_left_by_groups()])


def _left_by_groups() -> list[int]:
    found = []
    with suppress(OSError, ValueError):
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        for version in _VERSIONS:
            if version.controller not in own:
                continue
            group = _ROOT / version.controller / own[version.controller].lstrip("/")
            for folder in (group, *group.parents):
                if folder == _ROOT.parent:
                    break
                with suppress(OSError, ValueError):
                    found.append(_left(folder, version))
    return found


def _left(group: Path, version: _Version) -> int:
    limit = int((group / version.limit).read_text())  # "max" is no number
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    pages = int(stat.get(version.files, 0)) - int(stat.get(version.shared, 0))
    return max(limit - int((group / version.used).read_text()) + pages, 0)
