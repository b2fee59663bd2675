"""Two models' scores side by side."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab_plugin.evaluation.scores import Score, side_by_side


def score(documents: list[float], better: bool | None = True, **changes: object) -> Score:
    value = sum(documents) / len(documents)
    fields = {
        "task": "t",
        "metric": "acc",
        "filter": "none",
        "value": value,
        "stderr": 0.1,
        "higher_is_better": better,
        "samples": len(documents),
        "shots": 0,
        "version": "1",
        "documents": tuple(documents),
    }
    return Score(**(fields | changes))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=50))
def test_paired_figures(answers: list[tuple[bool, bool]]) -> None:
    model, original = ([float(pair[i]) for pair in answers] for i in (0, 1))
    (row,) = side_by_side([score(model)], [score(original)])
    assert row.lost == sum(o and not m for m, o in answers)
    assert row.gained == sum(m and not o for m, o in answers)
    assert row.difference == pytest.approx(np.mean(model) - np.mean(original))
    spread = np.std(np.array(model) - np.array(original), ddof=1) / math.sqrt(len(answers))
    assert row.difference_stderr == pytest.approx(spread)
    assert (row.recovery is None) == (not any(original))


def test_no_recovery_where_less_is_better() -> None:
    (row,) = side_by_side([score([2.0, 4.0], better=False)], [score([2.0, 3.0], better=False)])
    assert row.recovery is None
    assert (row.lost, row.gained) == (1, 0)


def test_without_an_original_or_its_task() -> None:
    for others in (None, [score([1.0], task="another")]):
        (row,) = side_by_side([score([1.0])], others)
        assert (row.value, row.original, row.recovery, row.lost) == (1.0, None, None, None)


def test_without_documents_only_the_values_are_compared() -> None:
    model, original = (replace(score([value]), documents=()) for value in (1.0, 0.5))
    (row,) = side_by_side([model], [original])
    assert (row.recovery, row.difference) == (200.0, 0.5)
    assert (row.difference_stderr, row.lost, row.gained) == (None, None, None)
