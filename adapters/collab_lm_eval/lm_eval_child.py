"""The child process: `python -m collab_lm_eval.lm_eval_child FOLDER` loads tasks, then runs them on each served model
that it is told of.

A process of its own, because lm-evaluation-harness prints, logs and draws bars as it likes. It tells
``{"loaded": n}``; then, for each line ``{"url", "token", "ctx"}`` that it hears, ``{"done", "total"}`` and
``{"run": TaskRun}``.
"""

from __future__ import annotations

import random
from typing import Any, NoReturn

import numpy as np

from collab_lm_eval.load_tasks import load
from collab_lm_eval.scores_of import scores_of
from collab_lm_eval.tasks_job import TasksJob
from collab_plugin.engines.child_main import Parent, run_child
from collab_plugin.evaluation.scores import TaskRun
from collab_plugin.formats.json_document import to_plain
from collab_plugin.progress import Advance

# As lm-evaluation-harness seeds itself.
SEED, NUMPY_SEED, SHOT_SEED = 0, 1234, 1234
# Draws for standard errors that have no formula (perplexity, F1): known to about 2 %.
BOOTSTRAPS = 1000


def main() -> None:
    run_child({TasksJob: _serve})


def _serve(job: TasksJob, parent: Parent) -> NoReturn:
    """Run the tasks on whatever the parent tells, until it ends us."""
    loaded = load(job.names, job.folder)
    parent.say(loaded=len(loaded["tasks"]))
    while True:
        parent.say(run=to_plain(_run(loaded, parent.hear(), job, parent.progress)))


def _run(loaded: dict[str, Any], served: dict[str, Any], job: TasksJob, progress: Advance) -> TaskRun:
    """Run all tasks on one served model; the same documents and examples for every model."""
    import lm_eval

    from collab_lm_eval.served_model import ServedModel

    random.seed(SEED)
    np.random.seed(NUMPY_SEED)  # what the tasks themselves draw from
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SHOT_SEED)
    model = ServedModel(**served, request_limit=job.request_limit, progress=progress)
    results = lm_eval.evaluate(model, loaded, limit=job.limit, log_samples=True, bootstrap_iters=BOOTSTRAPS)
    return TaskRun(scores_of(results), model.filled)


if __name__ == "__main__":
    main()
