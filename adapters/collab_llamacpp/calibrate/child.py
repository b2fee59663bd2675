"""Run a job in a child process, so that an abort of native code is an error here and no crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError

# A write to a mapped file (jobs.reference) on a full disk is a SIGBUS, and so is a read past a cut file.
_HINTS = {
    "SIGKILL": "; the machine ran out of memory",
    "SIGBUS": "; the disk is full, or a file was cut short meanwhile",
}
OnLine = Callable[[dict[str, Any]], None]


def run_job(job: dict[str, Any], on_line: OnLine) -> dict[str, NDArray[Any]]:
    """Carry out ``job`` and return its arrays; ``on_line`` gets each JSON line that it prints.

    Raises CollabError with the child's message, or naming the signal that ended it and llama.cpp's last
    complaint.
    """
    with tempfile.TemporaryDirectory(prefix="collab-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job))
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "collab_llamacpp.calibrate.llamacpp_child_main", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the child
                # Else ggml runs gdb on an abort, which prints on our pipe and takes seconds.
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    on_line(json.loads(line))
                code = child.wait()
            finally:
                child.kill()
                child.wait()
        if code == 0:
            with np.load(folder / "result.npz", allow_pickle=False) as arrays:
                return dict(arrays)
        raise failure(code, folder, job)


def failure(code: int, folder: Path, job: dict[str, Any]) -> Exception:
    """What a child's end with ``code`` means: its own message, the signal that ended it, or a bug."""
    log = (folder / "log").read_text(errors="replace")
    if code == 2 and (folder / "error.txt").exists():
        message = (folder / "error.txt").read_text()
        complaint = _complaint(log) if "llama.cpp cannot" in message else ""
        return CollabError(message + (f": {complaint}" if complaint else ""))
    if code < 0:
        what = signal.Signals(-code).name
        hint = _HINTS.get(what, "")
        return CollabError(
            f"llama.cpp was ended by {what} while it tried to {job['do']} {job.get('model', job.get('original'))}{hint}"
            f"{': ' + complaint if (complaint := _complaint(log)) else ''}"
        )
    return RuntimeError(f"the llama.cpp worker failed (exit code {code}):\n{log[-4000:]}")


def _complaint(log: str) -> str:
    """llama.cpp's first line that names an error: later ones only repeat that loading failed."""
    lines = [line.strip() for line in log.splitlines()]
    for words in (("GGML_ASSERT", "error loading"), ("error", "failed", "invalid")):
        found = [line for line in lines if any(word in line for word in words)]
        if found:
            return found[0][:300]
    return ""
