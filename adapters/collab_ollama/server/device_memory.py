"""How much memory is free here, as Ollama reckons it."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that programs can still take, the control group's limit included; None where it is not known.

    As in discover/cpu_linux.go of Ollama: MemAvailable, or memory.max - memory.current when that is less.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free
