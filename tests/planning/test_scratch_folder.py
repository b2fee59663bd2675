"""Folders for temporary copies of the model, which the next run removes when their process is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from collab_plugin.planning.measure.scratch_folder import scratch_folder

HOLDS = """
import sys
from collab_plugin.planning.measure.scratch_folder import scratch_folder

with scratch_folder() as folder:
    (folder / "large.gguf").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "collab-plugin" / "scratch"


def _held() -> tuple[subprocess.Popen[str], Path]:
    """Another process that has a scratch folder."""
    child = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def test_it_is_gone_afterwards(place: Path) -> None:
    with scratch_folder() as folder:
        (folder / "file").write_bytes(b"x")
    assert list(place.iterdir()) == []


def test_it_is_gone_after_an_error(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder():
        raise KeyboardInterrupt
    assert list(place.iterdir()) == []


def test_those_of_running_processes_stay(place: Path) -> None:
    child, other = _held()
    with scratch_folder() as one, scratch_folder() as two:
        assert len({one, two, other}) == 3
        assert (other / "large.gguf").is_file()
        assert one.is_dir()
    assert (other / "large.gguf").is_file()
    child.communicate("\n", timeout=60)
    assert not other.exists()


def test_those_of_killed_processes_go(place: Path) -> None:
    child, left = _held()
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert (left / "large.gguf").is_file()
    with scratch_folder() as folder:
        assert not left.exists()
        assert {path.name for path in place.iterdir()} == {folder.name, f"{folder.name}.lock"}
