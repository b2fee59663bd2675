"""Text that the user gives: UTF-8 files, stdin and pipes."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import BinaryIO

from collab_plugin.errors import CollabError
from collab_plugin.formats.output_path import check_utf8

STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def read_text(path: Path) -> str:
    """Read UTF-8 text; CollabError when there is none."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise CollabError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CollabError(f"{path} is not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise CollabError(f"{path} is empty")
    return text


def text_file(path: str | os.PathLike[str]) -> Path:
    """Return a file with the text of ``path`` that can be read as often as needed, by child processes too.

    A regular file is that itself. "-" is stdin; stdin and other pipes, such as a shell's ``<(...)``, are read here to
    their end and kept in a temporary folder as long as this process lives. CollabError for what is not there, a
    folder, or a device.
    """
    path = Path(path)
    if str(path) in STDIN:
        return _kept("stdin", sys.stdin.buffer)
    check_utf8(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CollabError(f"cannot read the text {path}: {error.strerror or error}") from None
    if stat.S_ISDIR(mode):
        raise CollabError(f"cannot read the text {path}: it is a folder; give its files")
    if stat.S_ISREG(mode):
        # What the shell opened has its number here alone: a child process has other files under it.
        return path.resolve() if path.parts[:2] in ((os.sep, "dev"), (os.sep, "proc")) else path
    if not stat.S_ISFIFO(mode):
        raise CollabError(f"cannot read the text {path}: it is a device or a socket; give a file, or - for stdin")
    try:
        with path.open("rb") as pipe:
            return _kept(f"pipe-{path.name}", pipe)
    except OSError as error:
        raise CollabError(f"cannot read the text {path}: {error.strerror}") from None


def _kept(name: str, stream: BinaryIO) -> Path:
    """The rest of ``stream`` as a file called ``name``."""
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    with (folder / name).open("wb") as file:
        shutil.copyfileobj(stream, file)
        if not file.tell():
            raise CollabError(f"the text from {name} is empty")
    return folder / name


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed at the end of the process."""
    return tempfile.TemporaryDirectory(prefix="collab-text-")
