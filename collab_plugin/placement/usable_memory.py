"""How much memory a model may take here: what is free, or what the control group of this process allows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
_FILES = (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
"""Controller of a line of /proc/self/cgroup, and the file with its limit: version 2, version 1."""


def usable_memory() -> int:
    """Bytes: the least of what the system has available and the limits of this process's control groups."""
    return min([psutil.virtual_memory().available, *_limits()])


def _limits() -> list[int]:
    found = []
    with suppress(OSError, ValueError):
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        for controller, file in _FILES:
            if controller not in own:
                continue
            group = _ROOT / controller / own[controller].lstrip("/")
            for folder in (group, *group.parents):
                if folder == _ROOT.parent:
                    break
                with suppress(OSError, ValueError):
                    found.append(int((folder / file).read_text()))  # "max" is no number
    return found
