"""lm-evaluation-harness as a child process: tasks loaded once, run on one served model after another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from collab_lm_eval.tasks_job import TasksJob
from collab_plugin.engines.child_process import Child, ChildProgram, start
from collab_plugin.engines.results import Served
from collab_plugin.errors import CollabError
from collab_plugin.evaluation.scores import TaskRun
from collab_plugin.evaluation.task_runner import LoadedTasks, TaskRunner
from collab_plugin.formats.json_document import from_plain
from collab_plugin.progress import Advance

REQUEST_LIMIT = 3600
"""Seconds that a served model may take for one answer."""


class LmEvalRunner(TaskRunner):
    """lm-evaluation-harness as installed here; importing this loads nothing of it."""

    name: ClassVar[str] = "lm_eval"

    def version(self) -> str:
        if any(find_spec(name) is None for name in ("lm_eval", "requests", "tenacity")):
            raise CollabError("`tasks` needs lm-evaluation-harness: pip install 'collab-plugin[tasks]'")
        return f"lm_eval {version('lm_eval')}"

    def load(
        self, names: Sequence[str], *, limit: int | None, folder: Path | None
    ) -> AbstractContextManager[LoadedTasks]:
        """As `TaskRunner.load`; paths in the YAML files of ``folder`` count from it."""
        self.version()
        if folder is not None and not folder.is_dir():
            raise CollabError(f"the tasks' folder {folder} does not exist")
        return _load(TasksJob(tuple(names), limit, str(folder.resolve()) if folder else None, REQUEST_LIMIT))


@contextmanager
def _load(job: TasksJob) -> Iterator[LoadedTasks]:
    program = ChildProgram(
        "collab_lm_eval.lm_eval_child",
        "lm-evaluation-harness",
        environment=_environment(),
        folder=Path(job.folder) if job.folder else None,
    )
    with start(program, job) as child:
        yield _Loaded(child)


class _Loaded(LoadedTasks):
    def __init__(self, child: Child) -> None:
        self._child = child
        self.tasks = int(self._hear("load tasks")["loaded"])

    def run(self, served: Served, progress: Advance) -> TaskRun:
        self._child.tell({"url": served.url, "token": served.token, "ctx": served.ctx})
        while "run" not in (told := self._hear("run tasks")):
            progress(told["done"], told["total"])
        return from_plain(TaskRun, told["run"])

    def _hear(self, task: str) -> dict[str, Any]:
        """The child's next line; what its end means when there is none."""
        line = self._child.hear()
        if line is None:
            raise self._child.wait().failure(task)
        return line


def _environment() -> Mapping[str, str]:
    """No bars in the log, no proxy between us and loopback, no code from the hub, no pools of processes."""
    direct = ",".join(part for part in (os.environ.get("NO_PROXY"), "127.0.0.1") if part)
    return {
        "TQDM_DISABLE": "1",
        "DISABLE_MULTIPROC": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "HF_DATASETS_TRUST_REMOTE_CODE": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
