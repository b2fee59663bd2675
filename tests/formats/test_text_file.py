"""Text from files, stdin and pipes: whatever it comes through, it can be read twice and by other processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from collab_plugin.errors import CollabError
from collab_plugin.formats.text_file import read_text, text_file

TEXT = "Über alles, was durch eine Röhre kommt.\n"
READ = (
    "import subprocess, sys; from pathlib import Path\n"
    "from collab_plugin.formats.text_file import read_text, text_file\n"
    "kept = text_file(Path(sys.argv[1]))\n"
    'again = \'import sys; print(open(sys.argv[1], encoding="utf-8").read(), end="")\'\n'
    "other = subprocess.run([sys.executable, '-c', again, kept], stdin=subprocess.DEVNULL, capture_output=True)\n"
    "sys.stdout.buffer.write(read_text(kept).encode() + other.stdout + kept.name.encode())"
)
TWICE = (TEXT * 2).encode()


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(TEXT, "utf-8")
    assert text_file(path) == path
    assert text_file(str(path)) == path


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_stdin(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", READ, name], input=TEXT.encode(), capture_output=True, check=True)
    assert done.stdout == TWICE + b"stdin"


def test_stdin_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT, "utf-8")
    with (tmp_path / "text").open("rb") as file:
        done = subprocess.run([sys.executable, "-c", READ, "/dev/stdin"], stdin=file, capture_output=True, check=True)
    assert done.stdout == TWICE + b"stdin"


def test_what_a_shell_hands_over(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT, "utf-8")
    (tmp_path / "script.py").write_text(READ)
    for source in ("<(cat text)", "/dev/fd/7 7<text"):
        script = f"cd {tmp_path} && {sys.executable} script.py {source}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
        assert done.stdout.startswith(TWICE), done.stderr


def test_a_named_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TEXT, "utf-8"))
    writer.start()
    kept = text_file(pipe)
    writer.join()
    assert [read_text(kept), read_text(kept)] == [TEXT, TEXT]
    assert kept.name == "pipe-pipe"


def test_kept_text_is_gone_with_the_process(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", READ, "-"]
    subprocess.run(command, input=TEXT.encode(), capture_output=True, check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_empty_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(CollabError, match=r"^the text from stdin is empty$"):
        text_file("-")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "nowhere: No such file or directory"),
        (".", "it is a folder; give its files"),
        ("/dev/null", "cannot read the text /dev/null: it is a device or a socket; give a file, or - for stdin"),
        ("file/text", "Not a directory"),
        (os.fsdecode(b"\xe9.txt"), r"\xe9.txt' is not UTF-8; give it another name"),
    ],
)
def test_what_is_no_text(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CollabError) as caught:
        text_file(tmp_path / name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
