"""What the child process loads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TasksJob:
    """``limit``: most documents of a task; ``folder`` of YAML tasks beside those of lm-evaluation-harness;
    ``request_limit``: seconds that a served model may take for one answer."""

    names: tuple[str, ...]
    limit: int | None
    folder: str | None
    request_limit: int
