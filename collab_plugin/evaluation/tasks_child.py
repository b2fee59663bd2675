"""The child process: `python -m collab_plugin.evaluation.tasks_child FOLDER` loads the tasks of FOLDER/job.json, then
runs them on each served model named on stdin.

A process of its own, because lm-evaluation-harness prints, logs and draws bars as it likes. JSON lines on
stdout: ``{"loaded": n}``; then, for each ``{"url", "token", "ctx"}`` line on stdin, ``{"done", "total"}`` and
``{"scores", "filled"}``. A user's mistake goes to FOLDER/error.txt (exit code 2), everything else to stderr.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import queue
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from collab_plugin.errors import CollabError

# As lm-evaluation-harness seeds itself.
SEED, NUMPY_SEED, SHOT_SEED = 0, 1234, 1234
# Draws for standard errors that have no formula (perplexity, F1): known to about 2 %.
BOOTSTRAPS = 1000


def main() -> int:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print must not reach our pipe

    def say(**line: Any) -> None:
        print(json.dumps(line), file=pipe, flush=True)

    models = _lines()
    try:
        loaded = load(job["tasks"], job["folder"])
        say(loaded=len(loaded["tasks"]))
        while True:
            served = json.loads(models.get())
            scores, filled = run(
                loaded, served, job["limit"], job["request_limit"], lambda done, total: say(done=done, total=total)
            )
            say(scores=scores, filled=filled)
    except CollabError as error:
        (folder / "error.txt").write_text(str(error))
        return 2


def _lines() -> queue.Queue[str]:
    """Lines of stdin; its end, our parent's, is ours."""
    lines: queue.Queue[str] = queue.Queue()
    # A descriptor of our own: a process forked by a task would wait forever for the lock on sys.stdin that
    # the reading thread holds.
    stdin = os.fdopen(os.dup(0), encoding="utf-8")
    sys.stdin = io.StringIO()

    def read() -> None:
        for line in stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def load(names: list[str], folder: str | None) -> dict[str, Any]:
    """Load tasks and groups with their data; CollabError for unknown ones and for data out of reach."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    known = manager.all_tasks
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 5)
            hint = f"; similar: {', '.join(close)}" if close else ""
            raise CollabError(f"unknown task {name!r} (lm-evaluation-harness has {len(known):,}){hint}")
    try:
        found: dict[str, Any] = manager.load(names)
    except Exception as error:
        raise _load_error(names, error) from error
    for name, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise CollabError(f"task {name} runs code that the model writes: not run here")
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
    return found


def _load_error(names: list[str], error: Exception) -> CollabError:
    """Whatever someone else's task does while it is loaded is told in one line."""
    if isinstance(error, ConnectionError):
        return CollabError(
            f"the data of a task cannot be had: {error}. Run once where there is a network (they stay in the Hugging "
            "Face cache), or use tasks of your own with `tasks_folder`"
        )
    if isinstance(error, ModuleNotFoundError):
        return CollabError(f"a task of {', '.join(names)} needs a package: pip install {error.name}")
    return CollabError(f"lm-evaluation-harness cannot load {', '.join(names)}: {type(error).__name__}: {error}")


def run(
    loaded: dict[str, Any], served: dict[str, Any], limit: int | None, request_limit: int, progress: Any
) -> tuple[list[dict[str, Any]], int]:
    """Run all tasks on one served model; the same documents and examples for every model."""
    import lm_eval

    from collab_plugin.evaluation.served_model import ServedModel

    random.seed(SEED)
    np.random.seed(NUMPY_SEED)  # what the tasks themselves draw from
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SHOT_SEED)
    model = ServedModel(**served, request_limit=request_limit, progress=progress)
    results = lm_eval.evaluate(model, loaded, limit=limit, log_samples=True, bootstrap_iters=BOOTSTRAPS)
    return _scores(results), model.filled


def _scores(results: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for task, figures in results["results"].items():
        for key, value in figures.items():
            metric, _, how = key.partition(",")
            if not how or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = figures.get(f"{metric}_stderr,{how}")
            documents = _documents(results, task, metric, how)
            # Only where the score is the documents' mean: a group may weigh its tasks alike instead.
            if not documents or abs(sum(documents) / len(documents) - value) > 1e-9:
                documents = []
            found.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": how,
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
                    "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
                    "samples": int(figures.get("sample_len", len(documents))),
                    "shots": _shots(results, task),
                    "version": str(results["versions"].get(task, "")),
                    "documents": documents,
                }
            )
    return found


def _shots(results: dict[str, Any], task: str) -> int:
    shots = results["n-shot"].get(task, 0)
    return int(shots) if isinstance(shots, (int, float)) else 0


def _documents(results: dict[str, Any], task: str, metric: str, how: str) -> list[float]:
    """The metric of each document of a task, or of all of a group's tasks one after the other."""
    members = results.get("group_subtasks", {}).get(task)
    if members:
        return [value for member in members for value in _documents(results, member, metric, how)]
    samples = [sample for sample in results["samples"].get(task, ()) if sample["filter"] == how]
    values = [sample.get(metric) for sample in samples]
    if not all(isinstance(value, (bool, int, float)) for value in values):
        return []
    return [float(value) for value in values]


if __name__ == "__main__":
    sys.exit(main())
