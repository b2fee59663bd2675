"""How many cores there are to use."""

from __future__ import annotations

import psutil


def cores() -> int:
    """Cores that this process may run on: fewer than the machine's in a container or under taskset."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # macOS has none
        return len(process.cpu_affinity() or [0])
    return psutil.cpu_count() or 1
