"""Where something is to be written: checked before the work, and told in one line when the system refuses."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collab_plugin.errors import CollabError

PARTIAL = ".partial"
"""What is being written has its name with this behind it until it is whole."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_output(out: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """CollabError unless ``out`` can become a file: its folder is there and writable, and nothing but a regular file is
    replaced. What a link leads to counts, too. ``inputs``: what is read for it, None for what is not; none of them is
    replaced, and nothing is written into a model's folder. Addresses of models elsewhere are text.
    """
    for path in inputs:
        if path is not None:
            _refuse_input(out, Path(path))
    part = _checked_folder(out)
    with writing(out):
        for path in (part, out):
            if (kind := _kind(path)) is not None:
                what = "name the file to write" if kind == "folder" else "only regular files are replaced"
                raise CollabError(f"{path} is a {kind}; {what}")


def _refuse_input(out: Path, path: Path) -> None:
    with suppress(OSError):  # what is not there is told by whoever reads it
        if out.exists() and out.samefile(path):
            raise CollabError(f"{out} is what is read; name another file to write")
        if _holds_model(path) and out.parent.resolve() == path.resolve():
            raise CollabError(f"{out} lies in the model's folder, which is never written to; name another place")


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def check_output_folder(out: Path) -> None:
    """CollabError unless ``out`` can become a folder: nothing has its name, and where it lies can be written to."""
    _checked_folder(out)
    if os.path.lexists(out):
        raise CollabError(f"{out} exists; name a folder that does not")


@contextmanager
def writing(out: Path, needed: int | None = None) -> Iterator[None]:
    """Tell in one line what the system says against writing ``out``, of ``needed`` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            size = f" ({needed:,} bytes)" if needed is not None else ""
            raise CollabError(f"no space for {out}{size}: free some and run the same command again") from None
        if error.errno == errno.EFBIG:
            raise CollabError(
                f"no space for {out}: the file system or `ulimit -f` allows no file so large; write to another folder"
            ) from None
        raise CollabError(f"cannot write {out}: {error.strerror or error}") from None


def check_utf8(path: Path) -> None:
    """CollabError for a path that no document could name, as JSON and GGUF hold UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CollabError(f"the path {os.fsencode(path)!r} is not UTF-8; give it another name") from None
    if "\0" in str(path):
        raise CollabError(f"the path {str(path)!r} has a NUL character; give it another name")


def _checked_folder(out: Path) -> Path:
    """``out``.partial, in a folder that can be written to."""
    check_utf8(out)
    with writing(out):
        if not out.parent.is_dir():
            raise CollabError(f"cannot write {out}: {out.parent} does not exist; make the folder first")
        part = out.with_name(out.name + PARTIAL) if out.name else out
        with suppress(FileNotFoundError):
            os.lstat(part)  # a name that is too long, for example, would else be told after the work
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise CollabError(f"cannot write {out}: {out.parent} is not writable")
    return part


def _kind(path: Path) -> str | None:
    """What stands at ``path`` that must not be replaced; None for a regular file, a dead link, or nothing."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    for test, name in (
        (stat.S_ISREG, None),
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
        (stat.S_ISSOCK, "socket"),
    ):
        if test(mode):
            return name
    return "special file"
