"""What tasks measured: one model's scores, and two models' side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """One metric of one task or group. ``filter`` is how the answer was read out of a generation ("none"
    where nothing was); ``stderr`` None where the runner gives none. ``documents`` holds the
    metric of each document, in the task's order, and is empty where the value is not their mean.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    samples: int
    shots: int
    version: str
    documents: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskRun:
    """All scores of one model. ``filled`` counts requests as long as the context: those were cut at the
    left, or just fitted."""

    scores: tuple[Score, ...]
    filled: int


@dataclass(frozen=True)
class TaskRow:
    """A score beside the original's; the last six are None without an original.

    ``recovery``: 100 x model / original, None for metrics where less is better and for an original of 0.
    ``difference``: model - original; ``difference_stderr`` its standard error over the documents, paired, which
    is smaller than the two scores' own suggest. ``lost`` and ``gained`` count the documents that the model
    answers worse and better than the original: equal scores may hide many of both.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    samples: int
    shots: int
    version: str
    value: float
    stderr: float | None
    original: float | None = None
    original_stderr: float | None = None
    recovery: float | None = None
    difference: float | None = None
    difference_stderr: float | None = None
    lost: int | None = None
    gained: int | None = None


@dataclass(frozen=True)
class TaskReport:
    """A row for each metric of each task, groups after their members. ``asked`` for; ``harness`` names
    the runner and its version; ``limit`` the most documents a task, None for all; ``ctx`` in tokens."""

    rows: tuple[TaskRow, ...]
    asked: tuple[str, ...]
    harness: str
    engine: str
    limit: int | None
    ctx: int


def side_by_side(model: Sequence[Score], original: Sequence[Score] | None) -> tuple[TaskRow, ...]:
    """Pair scores by task, metric and filter."""
    others: Mapping[tuple[str, str, str], Score] = {(s.task, s.metric, s.filter): s for s in original or ()}
    return tuple(_row(score, others.get((score.task, score.metric, score.filter))) for score in model)


def _row(score: Score, other: Score | None) -> TaskRow:
    row = TaskRow(
        task=score.task,
        metric=score.metric,
        filter=score.filter,
        higher_is_better=score.higher_is_better,
        samples=score.samples,
        shots=score.shots,
        version=score.version,
        value=score.value,
        stderr=score.stderr,
    )
    if other is None:
        return row
    stderr = lost = gained = None
    if score.documents and len(score.documents) == len(other.documents):
        change = np.array(score.documents) - np.array(other.documents)
        better = change if score.higher_is_better is not False else -change
        lost, gained = int((better < 0).sum()), int((better > 0).sum())
        if len(change) > 1:
            stderr = float(change.std(ddof=1) / math.sqrt(len(change)))
    comparable = score.higher_is_better is True and other.value > 0
    return TaskRow(
        **vars(row)
        | {
            "original": other.value,
            "original_stderr": other.stderr,
            "recovery": 100 * score.value / other.value if comparable else None,
            "difference": score.value - other.value,
            "difference_stderr": stderr,
            "lost": lost,
            "gained": gained,
        }
    )
