"""Progress: lines in a pipe, a bar on a terminal; always on stderr."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from collab_plugin.progress import _plain

STEP = """
from collab_plugin.progress import track
with track("counting", unit="sheep") as report:
    report(1, 4)
    report(2)
    report(4)
"""


def test_pipe_gets_plain_lines_on_stderr_only() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first == "counting ..."
    assert last.startswith("counting: 4 of 4 sheep, ")
    assert "\x1b" not in done.stderr


def test_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    terminal = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", STEP], stderr=theirs, stdout=subprocess.PIPE, env=terminal) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux reports the end of a terminal as EIO
                break
            if not piece:
                break
            shown += piece
        out, _ = child.communicate()
    os.close(ours)
    assert child.returncode == 0
    assert out == b""
    assert b"\x1b[" in shown
    assert b"4/4" in shown
    assert b"sheep/s" in shown


def test_plain_lines_come_at_intervals_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    report = _plain("reading", 10, "rows", every=0.0)
    report(5)
    report(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("reading: 5 of 10 rows, ")
    assert lines[1].endswith("s left")
    assert lines[2].startswith("reading: 10 of 10 rows, ")
    quiet = _plain("reading", 10, "rows", every=3600.0)
    quiet(5)
    assert capsys.readouterr().err == "reading ...\n"
