"""Progress: events for whoever listens; lines in a pipe, a bar on a terminal, always on stderr."""

from __future__ import annotations

import dataclasses
import os
import pty
import subprocess
import sys

import pytest

from collab_plugin import progress
from collab_plugin.cli.progress import _Lines
from collab_plugin.progress import Progress, take_up, track

STEP = """
from collab_plugin.cli.progress import shown
from collab_plugin.progress import track
with track(shown(), "counting", unit="sheep") as advance:
    advance(1, 4)
    advance(2)
    advance(4)
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


def test_lines_come_at_intervals_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines()
    begun = Progress("reading", 0, 10, "rows", 0.0, False)
    for event in (
        begun,
        dataclasses.replace(begun, done=1, seconds=9.0),
        dataclasses.replace(begun, done=5, seconds=10.0),
        dataclasses.replace(begun, done=10, seconds=20.0, finished=True),
    ):
        lines(event)
    assert capsys.readouterr().err.splitlines() == [
        "reading ...",
        "reading: 5 of 10 rows, 0.5 rows/s, 10 s left",
        "reading: 10 of 10 rows, 0.5 rows/s, 20.0 s",
    ]


def test_what_an_earlier_run_did_is_told_and_no_part_of_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    events: list[Progress] = []
    with track(events.append, "counting", unit="sheep") as advance:
        take_up(advance, 600, 1000)
        now = 20.0
        advance(700)
        now = 80.0
        advance(1000)
    lines = _Lines()
    for event in events:
        lines(event)
    assert capsys.readouterr().err.splitlines() == [
        "counting ...",
        "counting: goes on after 600 of 1,000 sheep of an earlier run",
        "counting: 700 of 1,000 sheep, 5.0 sheep/s, 60 s left",
        "counting: 1,000 of 1,000 sheep, 5.0 sheep/s, 80.0 s",
        "counting: 1,000 of 1,000 sheep, 5.0 sheep/s, 80.0 s",
    ]


def test_what_takes_nothing_up_is_told_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[float, float | None]] = []
    take_up(lambda done, total=None: told.append((done, total)), 600, 1000)
    assert told == [(600, 1000)]
    with track(_Lines(), "counting", unit="sheep") as advance:
        take_up(advance, 0, 4)
        advance(2)
    assert capsys.readouterr().err == "counting ...\n"


def test_a_step_that_failed_ends_without_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Progress] = []
    with pytest.raises(ValueError, match="no more sheep"), track(events.append, "counting", 4, "sheep"):
        raise ValueError("no more sheep")
    assert [event.finished for event in events] == [False, True]
    for event in events:
        _Lines()(event)
    assert capsys.readouterr().err == "counting ...\n"


def test_events_come_at_intervals_but_the_last_always(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *(0.01 * i for i in range(1, 100))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    events: list[Progress] = []
    with track(events.append, "counting", 40, "sheep") as advance:
        for done in range(41):
            advance(done)
    assert 4 <= len(events) <= 8, "41 calls within half a second"
    assert events[-1].finished
    assert events[-1].done == 40


def test_events_can_be_printed() -> None:
    event = Progress("probing", 30, 60, "s", 30.0, False)
    assert str(event) == "probing: 30 of 60 s, 30 s left", "seconds a second say nothing"
    assert str(Progress("reading", 0, None, "rows", 0.0, False)) == "reading ..."
    assert str(Progress("reading", 3, None, "rows", 1.5, True)) == "reading: 3 rows, 2.0 rows/s, 1.5 s"
