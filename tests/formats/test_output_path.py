"""Nothing but a regular file is ever replaced, and what cannot be written is told before the work."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.output_path import check_output, check_output_folder, writing


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


GOOD: dict[str, Callable[[Path], object]] = {
    "nothing": lambda out: None,
    "a file": lambda out: out.write_bytes(b"old"),
    "a link to a file": lambda out: (out.with_name("file").write_bytes(b"old"), out.symlink_to("file")),
    "a dead link": lambda out: out.symlink_to("nowhere"),
}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (lambda out: out.mkdir(), "out is a folder; name the file to write"),
    "a pipe": (lambda out: os.mkfifo(out), "out is a pipe; only regular files are replaced"),
    "a socket": (_socket, "out is a socket; only regular files are replaced"),
    "a link to a device": (lambda out: out.symlink_to("/dev/null"), "out is a device; only regular files are replaced"),
    "a link to a folder": (lambda out: out.symlink_to("."), "out is a folder; name the file to write"),
    "a link to itself": (lambda out: out.symlink_to("out"), "out: Too many levels of symbolic links"),
    "a folder for the part": (lambda out: out.with_name("out.partial").mkdir(), "out.partial is a folder"),
}


@pytest.mark.parametrize("what", GOOD)
def test_what_may_be_written(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    GOOD[what](out)
    check_output(out)
    write_bytes(out, b"new")
    assert out.read_bytes() == b"new"
    assert not out.is_symlink()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("what", BAD)
def test_what_may_not_be_written(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make, says = BAD[what]
    make(out)
    before = sorted((p.name, p.lstat().st_mode) for p in tmp_path.iterdir())
    for write in (check_output, lambda path: write_bytes(path, b"new")):
        with pytest.raises(CollabError) as caught:
            write(out)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted((p.name, p.lstat().st_mode) for p in tmp_path.iterdir()) == before


def test_devices_themselves() -> None:
    before = Path("/dev/null").stat().st_rdev
    with pytest.raises(CollabError, match=r"^/dev/null is a device; only regular files are replaced$"):
        write_bytes(Path("/dev/null"), b"new")
    assert Path("/dev/null").stat().st_rdev == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none/out", "none does not exist; make the folder first"),
        ("file/out", "file does not exist; make the folder first"),
        ("x" * 250, "File name too long"),
        (os.fsdecode(b"caf\xe9.json"), r"caf\xe9.json' is not UTF-8; give it another name"),
        ("a\0b", "has a NUL character; give it another name"),
    ],
)
def test_names_that_cannot_be_written(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for check in (check_output, check_output_folder):
        with pytest.raises(CollabError) as caught:
            check(tmp_path / name)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="becomes another user in a child process")
def test_a_folder_of_someone_else(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    tmp_path.chmod(0o555)
    if (child := os.fork()) == 0:
        said = ""
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            check_output(tmp_path / "out")
        except CollabError as error:
            said = str(error)
        os._exit(0 if said.endswith("is not writable") else 1)
    assert os.waitpid(child, 0)[1] == 0
    tmp_path.chmod(0o755)


def test_folders(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new")
    (tmp_path / "dead").symlink_to("nowhere")
    for taken in (tmp_path, tmp_path / "dead", Path("/dev/null")):
        with pytest.raises(CollabError, match=r"exists; name a folder that does not$"):
            check_output_folder(taken)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"no space for x \(7 bytes\): free some and run the same command again"),
        (errno.EDQUOT, r"no space for x \(7 bytes\): free some and run the same command again"),
        (errno.EFBIG, "no space for x: the file system or `ulimit -f` allows no file so large"),
        (errno.EINVAL, "cannot write x: Invalid argument"),
        (errno.EIO, "cannot write x: Input/output error"),
    ],
)
def test_what_the_system_says(number: int, says: str) -> None:
    with pytest.raises(CollabError, match=f"^{says}"), writing(Path("x"), 7):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOSPC])
def test_sync_that_fails_leaves_the_old_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    out = tmp_path / "out"
    out.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CollabError, match=f"(cannot write|no space for) {out}"):
        write_bytes(out, b"new")
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
