"""Small files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from collab_plugin.errors import CollabError


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``path`` under a temporary name, sync, rename. CollabError when the system refuses."""
    part = path.with_name(path.name + ".partial")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CollabError(f"cannot write {path}: {error.strerror}") from None


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
