"""Tasks and groups of lm-evaluation-harness by name, with their data."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from collab_plugin.errors import CollabError


def load(names: Sequence[str], folder: str | None) -> dict[str, Any]:
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
        found: dict[str, Any] = manager.load(list(names))
    except Exception as error:
        raise _load_error(names, error) from error
    for name, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise CollabError(f"task {name} runs code that the model writes: not run here")
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
    return found


def _load_error(names: Sequence[str], error: Exception) -> CollabError:
    """Whatever someone else's task does while it is loaded is told in one line."""
    if isinstance(error, ConnectionError):
        return CollabError(
            f"the data of a task cannot be had: {error}. Run once where there is a network (they stay in the Hugging "
            "Face cache), or use tasks of your own with `tasks_folder`"
        )
    if isinstance(error, ModuleNotFoundError):
        return CollabError(f"a task of {', '.join(names)} needs a package: pip install {error.name}")
    return CollabError(f"lm-evaluation-harness cannot load {', '.join(names)}: {type(error).__name__}: {error}")
