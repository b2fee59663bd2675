"""The --threads option, the same for every command that works in parallel."""

from __future__ import annotations

import os

import click


def cores() -> int:
    """Cores that this process may run on: fewer than the machine's in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=cores(),
    show_default="all cores",
    help="Threads to use; results do not depend on it.",
)
