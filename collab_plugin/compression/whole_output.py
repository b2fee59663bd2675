"""Large outputs: one run at a time, under a name for what is unfinished, at their full size from the start, synced, and
given their name when whole."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import sync_folder
from collab_plugin.formats.output_path import PARTIAL, writing

LOCK = ".lock"


@contextmanager
def whole_output(out: Path, done_with: Path | None = None) -> Iterator[Path]:
    """Give the path of ``out``.partial, which becomes ``out`` when the body succeeds; ``done_with`` is removed then.

    What the body leaves there when it fails stays, for another run to go on with. CollabError while another run
    writes ``out``, and when the system refuses.
    """
    with whole_outputs(out, (out,), done_with) as (part,):
        yield part


@contextmanager
def whole_outputs(out: Path, files: Sequence[Path], done_with: Path | None = None) -> Iterator[tuple[Path, ...]]:
    """`whole_output` of several ``files``, which together are the output ``out``: the first gets its name last."""
    parts = tuple(part_of(file) for file in files)
    with only_run(out):
        yield parts
        with writing(out):
            for part, file in zip(reversed(parts), reversed(files), strict=True):
                if part.is_dir():
                    sync_folder(part)
                part.replace(file)
            sync_folder(out.parent)
            if done_with is not None:
                done_with.unlink(missing_ok=True)


def part_of(file: Path) -> Path:
    """The name of ``file`` while it is unfinished."""
    return file.with_name(file.name + PARTIAL)


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold the lock ``out``.lock, which a run that is killed leaves behind, unlocked."""
    path = out.with_name(out.name + LOCK)
    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise CollabError(f"another run is writing {out}; wait for it or stop it") from None
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise CollabError(f"cannot write {path}: {error.strerror}") from None
    except (OSError, NotImplementedError) as error:
        path.unlink(missing_ok=True)
        raise CollabError(
            f"the file system of {out.parent} cannot lock files ({getattr(error, 'strerror', None) or error}), which "
            "keeps two runs from writing one output; write to another folder"
        ) from None
    try:
        yield
    finally:
        # Under the lock, so that none who holds it loses its file. Where open files cannot be removed, it stays.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


class SizedFile:
    """A file of a known size, written at offsets from any thread; made by `sized_file`."""

    def __init__(self, handle: int, out: Path) -> None:
        self.handle, self._out = handle, out
        self._turn = threading.Lock()

    def write(self, at: int, data: memoryview) -> None:
        """Write ``data`` (bytes) at offset ``at``; CollabError when the system refuses."""
        with writing(self._out):
            while data:
                count = self._some(at, data)
                data, at = data[count:], at + count

    def read(self, at: int, size: int) -> bytes:
        """The ``size`` bytes at offset ``at``, fewer at the file's end; CollabError when the system refuses."""
        with writing(self._out):
            if hasattr(os, "pread"):
                return os.pread(self.handle, size, at)
            with self._turn:  # Windows
                os.lseek(self.handle, at, os.SEEK_SET)
                return os.read(self.handle, size)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        with writing(self._out):
            os.fsync(self.handle)

    def _some(self, at: int, data: memoryview) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self.handle, data, at)
        with self._turn:  # Windows
            os.lseek(self.handle, at, os.SEEK_SET)
            return os.write(self.handle, data)


@contextmanager
def sized_file(path: Path, out: Path) -> Iterator[SizedFile]:
    """Open ``path``, made when missing, as a part of the output ``out``; synced when the body succeeds."""
    with writing(out):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        file = SizedFile(handle, out)
        yield file
        file.sync()
    finally:
        os.close(handle)


def check_space(folder: Path, needed: int) -> None:
    """CollabError when ``folder`` has less than ``needed`` free bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CollabError(f"no space in {folder}: {needed:,} bytes are needed and {free:,} are free")


def allocate(file: SizedFile, out: Path, size: int, header: bytes) -> None:
    """Give ``file`` its ``size`` in bytes, on the disk where the file system can, and its ``header``."""
    with writing(out, size):
        os.ftruncate(file.handle, 0)
        os.ftruncate(file.handle, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.handle, 0, size)
    file.write(0, memoryview(header))
