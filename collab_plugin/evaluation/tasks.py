"""Tasks on a model and its original, one served after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.engines.engine import Engine
from collab_plugin.evaluation.harness import Harness, harness_version, load_tasks
from collab_plugin.evaluation.scores import TaskReport, TaskRun, side_by_side
from collab_plugin.progress import track


def evaluate_tasks(
    engine: Engine,
    model: Path,
    original: Path | None,
    names: Sequence[str],
    *,
    limit: int | None,
    folder: Path | None,
    ctx: int | None,
    threads: int,
    warn: Callable[[str], None],
) -> TaskReport:
    """Run the tasks ``names`` on ``model`` and, where given, on ``original``, with the same documents,
    examples and context; ``ctx`` None: the model's own, at most 4096 tokens.

    Raises CollabError for unknown tasks, data that cannot be had, and models that cannot be served. Tasks
    are loaded before any model is.
    """
    with ExitStack() as stack:
        with track(f"loading {', '.join(names)}", unit="tasks") as report:
            harness = stack.enter_context(load_tasks(names, limit=limit, folder=folder))
            report(harness.tasks, harness.tasks)
        # Both files before the first hours of work on one.
        ours, theirs = as_gguf(model, threads), as_gguf(original, threads) if original else None
        first, ctx = _run(engine, harness, ours, model, ctx, threads, warn)
        second = _run(engine, harness, theirs, original, ctx, threads, warn)[0] if theirs and original else None
    return TaskReport(
        rows=side_by_side(first.scores, second.scores if second else None),
        asked=tuple(names),
        harness=harness_version(),
        engine=engine.version(),
        limit=limit,
        ctx=ctx,
    )


def _run(
    engine: Engine,
    harness: Harness,
    gguf: Path,
    model: Path,
    ctx: int | None,
    threads: int,
    warn: Callable[[str], None],
) -> tuple[TaskRun, int]:
    """Scores and the context they were made with; ``model`` is what the user calls it."""
    with (
        track(f"tasks on {model.name or model}", unit="requests") as report,
        engine.serve(gguf, ctx=ctx, threads=threads) as served,
    ):
        found = harness.run(served, report)
    if found.filled:
        warn(
            f"{found.filled} requests fill the context of {served.ctx} tokens, so their beginnings were cut off: "
            "raise --ctx"
        )
    return found, served.ctx
