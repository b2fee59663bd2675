"""How much memory is free here, as Ollama reckons it."""

from __future__ import annotations

from pathlib import Path

import psutil


def available_memory() -> int:
    """Bytes that programs can still take, the control group's limit included.

    As in discover/cpu_linux.go of Ollama: MemAvailable, or memory.max - memory.current when that is less.
    """
    free = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free
