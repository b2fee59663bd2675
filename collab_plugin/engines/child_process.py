"""A child process for what may abort, hang or need another Python: the parent's side. child_main.py is the child's.

A child gets its job, a dataclass, as FOLDER/job.json. It tells JSON lines on the pipe that was its stdout, hears
JSON lines on its stdin, and leaves arrays in FOLDER/result.npz. A user's mistake is text in FOLDER/error.txt with exit
code 2; everything else that it or native code prints is FOLDER/log. The child and all that it started end with the
with statement, and when this process dies.
"""

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.child_main import JOB, MISTAKE, RESULT, USERS_MISTAKE
from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import to_plain
from collab_plugin.progress import Advance, take_up

LOG = "log"
SIGNALS = {
    "SIGKILL": "the machine ran out of memory, or someone killed it",
    # A write to a mapped file on a full disk, or a read past the end of a file that was cut.
    "SIGBUS": "the disk is full, or a file was cut short meanwhile",
    "SIGILL": "it was built for another processor",
}
"""What usually is behind a signal that ends a child."""
LOOK = 0.5
"""Seconds between looks at whether the child is still there."""
Arrays = dict[str, NDArray[Any]]
OnLine = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ChildProgram:
    """What a child runs: `python -m MODULE FOLDER`.

    ``name`` is what messages call it ("llama.cpp"); ``python`` the command before ``-m``, this Python when empty;
    ``environment`` is set beside ours; ``folder`` is where it runs, our own working folder when None.
    """

    module: str
    name: str
    python: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class End:
    """How a child ended: its exit code (minus the signal's number for a signal; None when it was ended after
    ``limit`` seconds), the user's mistake that it told, its log, and its result when the code is 0."""

    name: str
    code: int | None
    mistake: str
    log: str
    arrays: Arrays
    limit: float | None = None

    @property
    def why(self) -> str:
        """Why it did not end well, in one line; "" when it did."""
        if self.code == 0:
            return ""
        if self.code is None:
            return f"not done within the time limit of {self.limit:.0f} s"
        if self.mistake:
            return self.mistake
        said = f": {words}" if (words := complaint(self.log) or _last_line(self.log)) else ""
        if self.code > 0:
            return f"ended with exit code {self.code}{said}"
        name, behind = _signal(self.code)
        return f"ended by {name}{behind}{said}"

    def result(self, task: str) -> Arrays:
        """The child's arrays. ``task`` completes "while it tried to".

        Raises CollabError with the user's mistake or naming the signal, and RuntimeError with the log's tail for
        a bug.
        """
        if self.code == 0:
            return self.arrays
        raise self.failure(task)

    def failure(self, task: str) -> Exception:
        """What an end that was not good is raised as; ``task`` as in `result`."""
        said = f": {words}" if (words := complaint(self.log)) else ""
        if self.mistake:
            # An engine that refuses says why in its log alone.
            return CollabError(self.mistake + (said if f"{self.name} cannot" in self.mistake else ""))
        if self.code is None:
            return CollabError(f"{self.name} took more than {self.limit:.0f} s to {task}, and was ended{said}")
        if self.code < 0:
            name, behind = _signal(self.code)
            return CollabError(f"{self.name} was ended by {name} while it tried to {task}{behind}{said}")
        return RuntimeError(f"the child process of {self.name} failed (exit code {self.code}):\n{self.log[-4000:]}")


class Child:
    """A running child; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
        self._process, self._folder, self._name = process, folder, name
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process' number."""
        return self._process.pid

    def tell(self, line: Mapping[str, Any]) -> None:
        """Send a JSON line; nothing happens when the child has ended, which `hear` tells."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()

    def hear(self, limit: float | None = None) -> dict[str, Any] | None:
        """The child's next line, None when no more will come. TimeoutError after ``limit`` seconds."""
        deadline = time.monotonic() + limit if limit is not None else float("inf")
        while True:
            # Asked before the queue is: a line that came before the end is not lost. What the child started may hold
            # its pipe open, so that the pipe's end alone would not do.
            ended = self._process.poll() is not None
            left = deadline - time.monotonic()
            try:
                line = self._lines.get(timeout=max(min(LOOK, left), 0))
            except queue.Empty:
                if ended:
                    return None
                if left <= 0:
                    raise TimeoutError from None
                continue
            if line is None:
                return None
            with suppress(ValueError):  # a child that dies may leave half a line
                return dict(json.loads(line))

    def wait(self) -> End:
        """How the child ended, when it has."""
        return self._end(self._process.wait())

    def ended(self, limit: float) -> End | None:
        """How the child ended; None when it still runs after ``limit`` seconds."""
        try:
            return self._end(self._process.wait(limit))
        except subprocess.TimeoutExpired:
            return None

    def stop(self, limit: float) -> End:
        """End the child, whose time of ``limit`` seconds is over, with all that it started."""
        self.kill()
        return replace(self._end(None), limit=limit)

    def kill(self) -> None:
        """End the child with all that it started: engines start processes of their own."""
        if os.name == "nt":
            _kill_tree(self._process.pid)
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(LOOK)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _end(self, code: int | None) -> End:
        mistake, result = self._folder / MISTAKE, self._folder / RESULT
        arrays: Arrays = {}
        if code == 0 and result.exists():
            with np.load(result, allow_pickle=False) as found:
                arrays = dict(found)
        told = mistake.read_text("utf-8") if code == USERS_MISTAKE and mistake.exists() else ""
        return End(self._name, code, told, (self._folder / LOG).read_text(errors="replace"), arrays)


@contextmanager
def start(program: ChildProgram, job: object) -> Iterator[Child]:
    """Start ``program`` on ``job``, a dataclass; the child is gone when the with statement ends, however it does."""
    with tempfile.TemporaryDirectory(prefix="collab-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / JOB).write_text(json.dumps({"kind": type(job).__name__, "job": to_plain(job)}))
        with (folder / LOG).open("wb") as log:
            command = [*(program.python or (sys.executable,)), "-m", program.module, name]
            # What a killed child leaves behind goes with our folder.
            environment = {**os.environ, "TMPDIR": name, **program.environment}
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # its end tells the child of ours, however it came
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    cwd=program.folder,
                    # Ctrl-C reaches us alone; we end the child. The flag is Windows', where it is not 0.
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            except OSError as error:
                raise CollabError(f"{program.name} cannot be started as {command[0]}: {error.strerror}") from None
            child = Child(process, folder, program.name)
            try:
                yield child
            finally:
                child.kill()


def run(program: ChildProgram, job: object, on_line: OnLine = lambda line: None, *, limit: float | None = None) -> End:
    """Run ``program`` on ``job`` to its end; ``on_line`` gets each line that it tells. After ``limit`` seconds it is
    ended."""
    deadline = time.monotonic() + limit if limit is not None else float("inf")
    with start(program, job) as child:
        try:
            while (line := child.hear(deadline - time.monotonic())) is not None:
                on_line(line)
        except TimeoutError:
            pass
        else:
            if limit is None:
                return child.wait()
            if end := child.ended(max(deadline - time.monotonic(), LOOK)):
                return end
        assert limit is not None
        return child.stop(limit)


def heard(progress: Advance) -> OnLine:
    """What hands the lines of a child's `Parent.progress` on to ``progress``."""

    def on_line(line: dict[str, Any]) -> None:
        if "earlier" in line:
            take_up(progress, line["done"], line["total"])
        else:
            progress(line["done"], line["total"])

    return on_line


def complaint(log: str) -> str:
    """The line of a log that names an error, at most 300 characters; "" without one.

    That of an abort or of a file that cannot be loaded comes first, as later lines only repeat that something failed.
    An exception of Python stands at the end of its traceback.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for words, which in (
        (("GGML_ASSERT", "terminate called", "error loading"), 0),
        (("Error:", "error:"), -1),
        (("error", "failed", "invalid"), 0),
    ):
        if found := [line for line in lines if any(word in line for word in words)]:
            return found[which][:300]
    return ""


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _signal(code: int) -> tuple[str, str]:
    """The signal that a negative exit code stands for, and what usually is behind it: " (...)" or ""."""
    try:
        name = signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        name = f"signal {-code}"
    return name, f" ({SIGNALS[name]})" if name in SIGNALS else ""


def _kill_tree(pid: int) -> None:
    """Windows has no process groups to kill."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
