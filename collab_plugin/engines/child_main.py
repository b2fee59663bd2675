"""What every child of child_process.py does: read its job, tell lines, leave arrays, end with its parent.

Only this module and what it imports need to load in a foreign Python.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.target import NotOfferedError
from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import from_plain

JOB, RESULT, MISTAKE = "job.json", "result.npz", "error.txt"
USERS_MISTAKE = 2
"""Exit code of a child that says in FOLDER/error.txt what the user can mend."""


class Parent:
    """The process that started this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress = ToldProgress(self)
        self._pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what others print must not reach our pipe
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        # A descriptor of our own, read without Python's buffers: a process that is forked meanwhile would wait forever
        # for their lock.
        self._stdin = os.dup(0)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123  # a file descriptor is wanted
            os.dup2(nothing.fileno(), 0)
        threading.Thread(target=self._watch, daemon=True).start()

    def say(self, **line: Any) -> None:
        """Tell the parent a line."""
        print(json.dumps(line), file=self._pipe, flush=True)

    def hear(self) -> dict[str, Any]:
        """Wait for the next line that the parent tells."""
        return self._lines.get()

    def _watch(self) -> None:
        """Keep the parent's lines. The end of stdin is the parent's, however it came; then this process ends with all
        that it started."""
        rest = b""
        while part := os.read(self._stdin, 2**16):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._lines.put(json.loads(line))
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


class ToldProgress:
    """Tells ``parent`` how far the job is: an `Advance` and `TakesUp`. Its other end is child_process.py's `heard`."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent

    def __call__(self, done: float, total: float | None = None) -> None:
        self._parent.say(done=done, total=total)

    def take_up(self, done: float, total: float) -> None:
        self._parent.say(done=done, total=total, earlier=done)


Work = Callable[[Any, Parent], Mapping[str, NDArray[Any]] | None]


def run_child(works: Mapping[type[Any], Work]) -> NoReturn:
    """Carry out the job in the folder that is the first argument by the work for its class, and end the process.

    A CollabError or NotOfferedError of the work is the user's mistake. Everything else is a bug and ends in a
    traceback.
    """
    code = _carry_out(works)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what Python takes down at its end is of no use to anyone: 1.7 seconds with vLLM's modules


def _carry_out(works: Mapping[type[Any], Work]) -> int:
    """The exit code."""
    folder = Path(sys.argv[1])
    told = json.loads((folder / JOB).read_text("utf-8"))
    kind = next(kind for kind in works if kind.__name__ == told["kind"])
    parent = Parent(folder)
    try:
        job = from_plain(kind, told["job"])
    except CollabError as error:
        raise ValueError(f"the job is not a {kind.__name__}: {error}") from None
    try:
        arrays = works[kind](job, parent)
    except (CollabError, NotOfferedError) as error:
        (folder / MISTAKE).write_text(str(error), "utf-8")
        return USERS_MISTAKE
    if arrays is not None:
        np.savez(folder / RESULT, **arrays)  # type: ignore[arg-type]  # keyword arrays, as documented
    return 0
