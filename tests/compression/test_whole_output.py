"""Large outputs: one run at a time, whole or not under their name, and every refusal of the system in one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest

from collab_plugin.compression.whole_output import allocate, check_space, only_run, sized_file, whole_output
from collab_plugin.errors import CollabError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_gets_its_name_when_whole(tmp_path: Path) -> None:
    out, journal = tmp_path / "out", tmp_path / "journal"
    journal.touch()
    with whole_output(out, done_with=journal) as part, sized_file(part, out) as file:
        allocate(file, out, 10, b"head")
        parts = [(4, b"ab"), (6, b"cd"), (8, b"ef")]
        threads = [threading.Thread(target=file.write, args=(at, memoryview(data))) for at, data in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert _names(tmp_path) == ["journal", "out.lock", "out.partial"]
    assert _names(tmp_path) == ["out"]
    assert out.read_bytes() == b"headabcdef"


def test_folder_gets_its_name_when_whole(tmp_path: Path) -> None:
    with whole_output(tmp_path / "out") as part:
        part.mkdir()
        (part / "file").touch()
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["file"]


def test_what_failed_stays_for_another_run(tmp_path: Path) -> None:
    out, journal = tmp_path / "out", tmp_path / "journal"
    journal.touch()
    with pytest.raises(KeyError), whole_output(out, done_with=journal) as part, sized_file(part, out) as file:
        file.write(0, memoryview(b"half"))
        raise KeyError
    assert _names(tmp_path) == ["journal", "out.partial"]
    assert part.read_bytes() == b"half"


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from collab_plugin.compression.whole_output import only_run\n"
        "with only_run(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CollabError, match=r"^another run is writing .*/out; wait for it"), only_run(out):
            pass
        other.kill()
    assert _names(tmp_path) == ["out.lock"], "left by the run that was killed"
    with only_run(out):
        pass
    assert _names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows locks otherwise")

    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    says = rf"^the file system of {tmp_path} cannot lock files \({os.strerror(number)}\)"
    with pytest.raises(CollabError, match=says), only_run(tmp_path / "out"):
        pass
    assert _names(tmp_path) == []


def test_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out.lock").mkdir()
    with pytest.raises(CollabError, match=r"cannot write .*/out\.lock: "), only_run(tmp_path / "out"):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_sync_that_fails_is_one_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    out = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", fsync)
    says = f"^cannot write {out}: {os.strerror(number)}$"
    with pytest.raises(CollabError, match=says), whole_output(out) as part, sized_file(part, out) as file:
        file.write(0, memoryview(b"x"))
    assert not out.exists()


def test_space(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(CollabError, match=rf"^no space in {tmp_path}: 1,000,000,000,000,000,000 bytes are needed and "):
        check_space(tmp_path, 10**18)


def test_locks_are_the_librarys(tmp_path: Path) -> None:
    """So that other programs can wait for a run."""
    held, refused = filelock.FileLock(tmp_path / "out.lock"), pytest.raises(CollabError, match="another run")
    with held, refused, only_run(tmp_path / "out"):
        pass
