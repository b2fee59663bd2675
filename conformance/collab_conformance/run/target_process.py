"""A target's child process: started in a group of its own, listened to within a time limit, always ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from collab_conformance.run.job import Job
from collab_plugin.formats.json_document import to_plain

_HINTS = {"SIGKILL": " (the machine ran out of memory, or someone killed it)", "SIGBUS": " (a file was cut short)"}
_LOOK = 0.5
"""Seconds between looks at whether the child is still there."""
_SIGNS = ("GGML_ASSERT", "error:", "Error:", "terminate called", "abort")


def run_child(
    job: Job,
    on_line: Callable[[dict[str, Any]], None],
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    time_limit: float,
) -> str:
    """Run the job to its end; ``on_line`` gets each line of the protocol. Returns why it did not end well, "" when
    it did. The child and what it started are gone on return, also by an exception such as Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="collab-verify-", ignore_cleanup_errors=True) as name:
        path, log_path = Path(name, "job.json"), Path(name, "log")
        path.write_text(json.dumps(to_plain(job)))
        with log_path.open("wb") as log:
            whole = [*(command or [sys.executable]), "-m", "collab_conformance.run.target_child", str(path)]
            # What a killed child leaves behind goes with our folder.
            child = _start(whole, {"TMPDIR": name, **environment}, log)
            try:
                late = _listen(child, on_line, time.monotonic() + time_limit)
                code = None if late else child.wait()
            finally:
                _end(child)
        if code is None:
            return f"not done within the time limit of {time_limit:.0f} s"
        return _failure(code, log_path.read_text(errors="replace"))


def _start(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    # Else ggml runs gdb on an abort, which takes seconds.
    env = {**os.environ, "GGML_NO_BACKTRACE": "1", **environment}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # never written to: its end tells the child of ours
        stdout=subprocess.PIPE,
        stderr=log,
        env=env,
        # Ctrl-C reaches us alone; we end the child. The flag is Windows', where it is not 0.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _listen(child: subprocess.Popen[bytes], on_line: Callable[[dict[str, Any]], None], deadline: float) -> bool:
    """Pass the child's lines on until it ends; True when the time was over before.

    Its end, not that of its pipe: a process that it forked may hold that open."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while time.monotonic() < deadline:
        ended = child.poll() is not None
        try:
            line = lines.get(timeout=_LOOK)
        except queue.Empty:
            if ended:
                return False
            continue
        if line is None:
            return False
        # A child that dies may leave half a line.
        with suppress(ValueError):
            on_line(json.loads(line))
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and its group: engines start processes of their own."""
    if os.name == "nt":
        child.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stdin is not None
    child.stdin.close()


def _failure(code: int, log: str) -> str:
    if code == 0:
        return ""
    if code < 0:
        name = signal.Signals(-code).name
        what = f"ended by {name}{_HINTS.get(name, '')}"
    else:
        what = f"ended with exit code {code}"
    said = last_words(log)
    return f"{what}: {said}" if said else what


def last_words(log: str) -> str:
    """The last line of a log that names an error, else its last line, at most 300 characters."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if any(sign in line for sign in _SIGNS)]
    return (named or lines or [""])[-1][:300]
