"""`evaluate`, `reference` and `evaluate_tasks`: a model beside its original."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from collab_plugin.api.arguments import AnyPath, Model, engine_of, existing, opened, threads_of, windows_of
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.trained_context import window_note
from collab_plugin.compression.as_gguf import all_runnable, runnable
from collab_plugin.engines.engine import REFERENCE, Engine
from collab_plugin.engines.reference_file import windows_file
from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError
from collab_plugin.evaluation.scores import TaskReport
from collab_plugin.evaluation.tasks import evaluate_tasks as run_tasks
from collab_plugin.formats.output_path import check_output
from collab_plugin.plugins.manager import first_task_runner
from collab_plugin.progress import OnProgress, silent, track


def evaluate(
    model: Model,
    *,
    against: Model,
    texts: AnyPath | Sequence[AnyPath],
    ctx: int = 512,
    chunks: int | None = None,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
    progress: OnProgress = silent,
) -> Evaluation:
    """Compare ``model`` with its original on UTF-8 ``texts``: KL divergence in nats, perplexity, same top-1.

    ``against``: the original, or a file that `reference` wrote of it for the same windows. Texts run in windows of
    ``ctx`` tokens, at most ``chunks`` windows of each (None: all), and the second half of each window is scored.
    ``warn`` gets one sentence where windows are longer than what the model was trained for.

    Example: ``cp.evaluate("out.gguf", against="DeepSeek-V3/", texts=["held-out.txt"]).mean_kld``
    """
    chosen, windows = engine_of(engine), windows_of(texts, ctx, chunks)
    if isinstance(against, (str, os.PathLike)) and Path(against).suffix == REFERENCE:
        original, whole = existing(against, "reference"), opened(model)
        _tell_of_window(whole, ctx, warn)
        compared = runnable(chosen, "evaluate", whole, threads_of(threads), progress)
    else:
        both = (opened(model), opened(against))
        _tell_of_window(both[1], ctx, warn)
        compared, original = all_runnable(chosen, "evaluate", both, threads_of(threads), progress)
    with track(progress, "evaluating", unit="tokens") as advance:
        return chosen.evaluate(compared, original, windows, threads=threads_of(threads), progress=advance)


def reference(
    model: Model,
    out: AnyPath,
    *,
    texts: AnyPath | Sequence[AnyPath],
    ctx: int = 512,
    chunks: int | None = None,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
    progress: OnProgress = silent,
) -> None:
    """Run an original once and keep its logits in the file ``out`` (.npy), for `evaluate` of many models against it.

    In 16 bits: 2 bytes x half of the tokens x the vocabulary; docs/evaluate.md says how exact that is. ``texts``,
    ``ctx``, ``chunks`` and ``warn`` are as for `evaluate`, which must be given the same windows.

    Example: ``cp.reference("DeepSeek-V3/", "original.npy", texts=["held-out.txt"], chunks=16)``
    """
    chosen, windows = engine_of(engine), windows_of(texts, ctx, chunks)
    if Path(out).suffix != REFERENCE:
        raise CollabError(f"`out` {out} does not end in {REFERENCE}")
    for path in (Path(out), windows_file(Path(out))):
        check_output(path)
    checkpoint = opened(model)
    _tell_of_window(checkpoint, ctx, warn)
    runs = runnable(chosen, "reference", checkpoint, threads_of(threads), progress)
    with track(progress, "running the original", unit="tokens") as advance:
        chosen.reference(runs, windows, out=Path(out), threads=threads_of(threads), progress=advance)


def _tell_of_window(checkpoint: Checkpoint, ctx: int, warn: Callable[[str], None]) -> None:
    if note := window_note(checkpoint, ctx):
        warn(note)


def evaluate_tasks(
    model: Model,
    tasks: str | Sequence[str],
    *,
    against: Model | None = None,
    limit: int | None = None,
    tasks_folder: AnyPath | None = None,
    ctx: int | None = None,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
    progress: OnProgress = silent,
) -> TaskReport:
    """Run ``tasks`` or groups of lm-evaluation-harness on ``model`` and, where given, on its original ``against``.

    ``tasks``: a sequence of names, or one string of them separated by commas. ``limit``: at most so many documents
    of each task. ``tasks_folder``: folder of YAML tasks of your own; code in it is run. ``ctx``: tokens of context,
    None for the model's own, at most 4096. ``warn`` gets one sentence when requests were cut off.

    Example: ``cp.evaluate_tasks("out.gguf", ["mmlu", "gsm8k"], against="DeepSeek-V3/").rows``
    """
    words = tasks.split(",") if isinstance(tasks, str) else tasks
    names = [word.strip() for word in words if word.strip()]
    if not names:
        raise CollabError("`tasks` is empty: give names such as mmlu and gsm8k")
    return run_tasks(
        engine_of(engine),
        first_task_runner(),
        opened(model),
        None if against is None else opened(against),
        names,
        limit=limit,
        folder=None if tasks_folder is None else Path(tasks_folder),
        ctx=ctx,
        threads=threads_of(threads),
        warn=warn,
        progress=progress,
    )
