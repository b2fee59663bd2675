"""Small files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from collab_plugin.formats.output_path import PARTIAL, check_output, writing


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``path`` under a temporary name, sync, rename. CollabError when the system refuses, or when ``path`` is
    something else than a regular file."""
    check_output(path)
    part = path.with_name(path.name + PARTIAL)
    try:
        with writing(path, len(data)):
            write_synced(part, data)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk. OSError when the system refuses."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable (a no-op where folders cannot be synced)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
