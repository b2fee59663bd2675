"""Scores from what lm-evaluation-harness returns."""

from __future__ import annotations

from typing import Any

from collab_plugin.evaluation.scores import Score


def scores_of(results: dict[str, Any]) -> tuple[Score, ...]:
    """Every metric of every task and group."""
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
                Score(
                    task=task,
                    metric=metric,
                    filter=how,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
                    higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
                    samples=int(figures.get("sample_len", len(documents))),
                    shots=_shots(results, task),
                    version=str(results["versions"].get(task, "")),
                    documents=tuple(documents),
                )
            )
    return tuple(found)


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
