"""What benchmarks/sensitivity/constants.py learns: judges stand in its table and teach nothing."""

from __future__ import annotations

import pytest

from benchmarks.sensitivity.constants import JUDGES, learnt, table


@pytest.mark.parametrize("judge", JUDGES)
def test_judges_teach_nothing(judge: str) -> None:
    teachers = [("one", "f-1", "output", 0.2), ("two", "f-2", "output", 0.8)]
    # Of a family that taught, and alone with a constant.
    rows = [*teachers, (judge, "f-2", "output", 5.0), (judge, "f-2", "spreads", 2.0)]
    assert learnt(rows) == learnt(teachers) == {"output": pytest.approx(0.4)}
    assert table(rows).splitlines() == [
        f"| | one | two | {judge} (judge) | all families | without one |",
        "|---|---|---|---|---|---|",
        "| output | 0.2 | 0.8 | 5 | 0.4 | 0.2 to 0.8 |",
    ]
