"""What benchmarks/quality says of the goals: which rival counts at which size, and when a goal fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.quality.bench import Row
from benchmarks.quality.goals import results, table
from benchmarks.quality.rows import merged, read_rows, write_rows
from benchmarks.quality.variants import DEFAULT, PROBED, REPAIRED
from collab_plugin.planning.predictor import WITHIN_PROBED, WITHIN_REPAIRED, WITHIN_UNPROBED

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def row(bpw: float, variant: str, kld: float, size: float | None = None) -> Row:
    return Row("m", bpw, variant, "detail", 1000, bpw if size is None else size, kld, 0.01, 20.0, 19.0, 0.9, "abc")


@pytest.mark.parametrize(("bpw", "kld"), [(2.0, 0.4), (1.5, 0.1)], ids=["the preset", "any rival"])
def test_the_rival(bpw: float, kld: float) -> None:
    rivals = [
        row(bpw, "llama-quantize", 0.4),
        row(bpw, "llama-quantize", 0.01, size=bpw + 0.1),  # does not fit
        row(bpw, "REAP 50% + llama-quantize", 0.1),
    ]
    (found,) = results(rivals)
    assert found.rival is not None
    assert found.rival.mean_kld == kld


@pytest.mark.parametrize(
    ("bpw", "default", "probed", "failures"),
    [
        (2.5, 0.39, 0.20, 0),
        (2.5, 0.41, 0.20, 1),
        (2.5, 0.41, 0.21, 2),
        (3.5, 0.39, 0.24, 0),
        (3.5, 0.39, 0.25, 1),
    ],
)
def test_a_goal_that_does_not_hold_is_told(bpw: float, default: float, probed: float, failures: int) -> None:
    rows = [row(bpw, "llama-quantize", 0.4), row(bpw, "default", default), row(bpw, "probed", probed)]
    assert table(rows).count("FAILS") == failures


@pytest.mark.parametrize(("repaired", "failures"), [(0.2, 0), (0.21, 1)])
def test_the_goal_is_that_of_the_repaired_plan_where_there_is_one(repaired: float, failures: int) -> None:
    rows = [row(1.5, "llama-quantize", 0.4), row(1.5, "probed", 0.3), row(1.5, "probed, repaired", repaired)]
    assert table(rows).count("FAILS") == failures
    assert "| 0.75 |" in table(rows)


def test_what_was_measured_again_takes_the_place_of_what_was(tmp_path: Path) -> None:
    old = [row(2.0, "default", 0.3), row(2.0, "probed", 0.2), row(2.5, "default", 0.1)]
    write_rows(tmp_path / "q.csv", old)
    again = merged(read_rows(tmp_path / "q.csv"), [row(2.0, "default", 0.25)], {("m", 2.0, "default")})
    assert sorted((r.budget_bpw, r.variant, r.mean_kld) for r in again) == [
        (2.0, "default", 0.25), (2.0, "probed", 0.2), (2.5, "default", 0.1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "within"), [(DEFAULT, WITHIN_UNPROBED), (PROBED, WITHIN_PROBED), (REPAIRED, WITHIN_REPAIRED)]
)
def test_the_confidence_that_plans_state_is_what_was_measured(variant: str, within: float) -> None:
    measured = [r for r in read_rows(RESULTS / "quality.csv") if r.variant == variant]
    factors = []
    for r in measured:
        predicted = re.search(r"predicted ([\d.]+)", r.detail)
        assert predicted is not None
        factors.append(max(float(predicted[1]) / r.mean_kld, r.mean_kld / float(predicted[1])))
    assert len(factors) >= 10
    assert within - 0.3 < max(factors) <= within, f"the widest is {max(factors):.2f}"
