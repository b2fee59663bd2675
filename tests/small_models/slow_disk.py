"""A checkpoint on a disk that is slow on purpose: each read takes its time, and threads of a process take turns."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.formats.byte_file import Bytes, LocalFile
from collab_plugin.plugins.open_checkpoint import open_checkpoint


def open_slow(path: Path, bytes_s: float, seek: float = 0.0) -> Checkpoint:
    """The checkpoint at ``path``; from now on every file that this process reads gives ``bytes_s`` after ``seek``."""
    checkpoint = open_checkpoint(path)
    turn, read = threading.Lock(), getattr(LocalFile, "read_at_once", LocalFile.read)
    setattr(LocalFile, "read_at_once", read)  # noqa: B010  # so that a second call slows nothing twice

    def slowly(file: LocalFile, start: int, stop: int) -> Bytes:
        with turn:
            time.sleep(seek + (stop - start) / bytes_s)
            return read(file, start, stop)

    LocalFile.read = slowly  # type: ignore[method-assign]
    return checkpoint
