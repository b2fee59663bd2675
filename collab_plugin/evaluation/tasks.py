"""Tasks on a model and its original, one served after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression.as_gguf import all_runnable
from collab_plugin.engines.ability import check_able
from collab_plugin.engines.engine import Engine
from collab_plugin.evaluation.scores import TaskReport, TaskRun, side_by_side
from collab_plugin.evaluation.task_runner import LoadedTasks, TaskRunner
from collab_plugin.progress import OnProgress, silent, track


def evaluate_tasks(
    engine: Engine,
    runner: TaskRunner,
    model: Checkpoint,
    original: Checkpoint | None,
    names: Sequence[str],
    *,
    limit: int | None,
    folder: Path | None,
    ctx: int | None,
    threads: int,
    warn: Callable[[str], None],
    progress: OnProgress = silent,
) -> TaskReport:
    """Run the tasks ``names`` on ``model`` and, where given, on ``original``, with the same documents,
    examples and context; ``ctx`` None: the model's own, at most 4096 tokens.

    Raises CollabError for unknown tasks, data that cannot be had, and models that cannot be served. Tasks
    are loaded before any model is.
    """
    check_able(engine, "serve")
    with ExitStack() as stack:
        with track(progress, f"loading {', '.join(names)}", unit="tasks") as report:
            loaded = stack.enter_context(runner.load(names, limit=limit, folder=folder))
            report(loaded.tasks, loaded.tasks)
        # Both files before the first hours of work on one.
        both = [each for each in (model, original) if each]
        files = all_runnable(engine, "serve", both, threads, progress)
        first, ctx = _run(engine, loaded, files[0], model.address, ctx, threads, warn, progress)
        second = _run(engine, loaded, files[1], original.address, ctx, threads, warn, progress)[0] if original else None
    return TaskReport(
        rows=side_by_side(first.scores, second.scores if second else None),
        asked=tuple(names),
        harness=runner.version(),
        engine=engine.version(),
        limit=limit,
        ctx=ctx,
    )


def _run(
    engine: Engine,
    loaded: LoadedTasks,
    runs: Path,
    model: str,
    ctx: int | None,
    threads: int,
    warn: Callable[[str], None],
    progress: OnProgress,
) -> tuple[TaskRun, int]:
    """Scores and the context they were made with; ``model`` is what the user calls it."""
    with (
        track(progress, f"tasks on {Path(model).name or model}", unit="requests") as report,
        engine.serve(runs, ctx=ctx, threads=threads) as served,
    ):
        found = loaded.run(served, report)
    if found.filled:
        warn(
            f"{found.filled} requests fill the context of {served.ctx} tokens, so their beginnings were cut off: "
            "raise `ctx`"
        )
    return found, served.ctx
