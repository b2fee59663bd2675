"""lm-evaluation-harness as a child process: tasks loaded once, run on one served model after another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from collab_plugin.engines.results import Served
from collab_plugin.errors import CollabError
from collab_plugin.evaluation.scores import Score, TaskRun
from collab_plugin.progress import Advance

REQUEST_LIMIT = 3600
"""Seconds that a served model may take for one answer."""


def harness_version() -> str:
    """Name and version of lm-evaluation-harness; CollabError saying what to install when it is not there."""
    if any(find_spec(name) is None for name in ("lm_eval", "requests", "tenacity")):
        raise CollabError("`tasks` needs lm-evaluation-harness: pip install 'collab-plugin[tasks]'")
    return f"lm_eval {version('lm_eval')}"


class Harness:
    """Loaded tasks; made by `load_tasks`. ``tasks``: how many, members of groups counted."""

    def __init__(self, child: subprocess.Popen[str], folder: Path) -> None:
        self._child = child
        self._folder = folder
        self.tasks = int(self._read()["loaded"])

    def run(self, served: Served, progress: Advance) -> TaskRun:
        """Run the tasks on ``served``; ``progress`` gets (requests answered, requests known so far)."""
        assert self._child.stdin is not None
        line = json.dumps({"url": served.url, "token": served.token, "ctx": served.ctx})
        print(line, file=self._child.stdin, flush=True)
        while True:
            told = self._read()
            if "scores" in told:
                break
            progress(told["done"], told["total"])
        scores = tuple(Score(**s | {"documents": tuple(s["documents"])}) for s in told["scores"])
        return TaskRun(scores, int(told["filled"]))

    def _read(self) -> dict[str, Any]:
        """The child's next line; what its end means when there is none."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self._child.wait()
        error = self._folder / "error.txt"
        if code == 2 and error.exists():
            raise CollabError(error.read_text())
        if code == -signal.SIGKILL:
            raise CollabError("lm-evaluation-harness was killed; the machine may have run out of memory")
        log = (self._folder / "log").read_text(errors="replace")
        raise RuntimeError(f"lm-evaluation-harness failed (exit code {code}):\n{log[-4000:]}")


@contextmanager
def load_tasks(names: Sequence[str], *, limit: int | None, folder: Path | None) -> Iterator[Harness]:
    """Load ``names``, tasks or groups of lm-evaluation-harness or of ``folder`` (its YAML files; paths in
    them count from it), with at most ``limit`` documents each.

    Raises CollabError for unknown tasks and for data that cannot be had.
    """
    harness_version()
    if folder is not None and not folder.is_dir():
        raise CollabError(f"the tasks' folder {folder} does not exist")
    job = {
        "tasks": list(names),
        "limit": limit,
        "folder": str(folder.resolve()) if folder else None,
        "request_limit": REQUEST_LIMIT,
    }
    with tempfile.TemporaryDirectory(prefix="collab-") as name:
        place = Path(name)
        (place / "job.json").write_text(json.dumps(job))
        with (place / "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "collab_plugin.evaluation.tasks_child", str(place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                cwd=folder or place,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the child
                env=_environment(),
            )
            try:
                yield Harness(child, place)
            finally:
                # The whole session: tasks may have forked.
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                for pipe in (child.stdin, child.stdout):
                    assert pipe is not None
                    pipe.close()


def _environment() -> dict[str, str]:
    """No bars in the log, no proxy between us and loopback, no code from the hub, no pools of processes."""
    direct = ",".join(part for part in (os.environ.get("NO_PROXY"), "127.0.0.1") if part)
    return {
        **os.environ,
        "TQDM_DISABLE": "1",
        "DISABLE_MULTIPROC": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "HF_DATASETS_TRUST_REMOTE_CODE": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
