"""conformance/measure_limits.py: from reports to limits."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from collab_conformance.judge.limits import LimitRule
from collab_conformance.report.verify_report import Check, TargetReport

SCRIPT = Path(__file__).parents[2] / "conformance" / "measure_limits.py"
NAMES = {"broken": "text.broken"}
RULES = (
    LimitRule("tiny*/logits.nmse", "*", "at-most", 9.0, "measured: not yet"),
    LimitRule("other*/logits.nmse", "*", "at-most", 0.5, "measured: before"),
    LimitRule("logits.nmse", "*", "at-most", 9.0, "loosest of the suite's"),
    LimitRule("tiny*/logits.same_top1", "*", "at-least", 0.0, "measured: not yet"),
    LimitRule("text.broken", "*", "at-most", 0.0, "vLLM"),
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_limits", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def report(name: str, **figures: float | None) -> TargetReport:
    checks = tuple(
        Check(
            "logits", f"logits.{check}" if check != "broken" else "text.broken", "tiny", "pass", "", value, None, None
        )
        for check, value in figures.items()
    )
    return TargetReport(name, "pass", "", "toy", "1", None, {}, {}, {}, {}, checks, 1.0)


def test_the_worst_figure_is_the_farthest_to_the_wrong_side(script: ModuleType) -> None:
    targets = [report("a", nmse=1e-3, same_top1=0.99), report("b", nmse=2e-3, same_top1=0.97, broken=0.0)]
    found = script.worst_of(RULES, targets)
    assert found[0].value == 2e-3 and found[0].where == "tiny/logits.nmse on b"
    assert found[1] is None and found[2] is None
    assert found[3].value == 0.97 and found[4].value == 0.0


def test_limits_are_twice_the_worst_and_anchors_stay(script: ModuleType) -> None:
    worst = script.worst_of(RULES, [report("a", nmse=1.234e-3, same_top1=0.97, broken=1.0)])
    new = [script.renewed(rule, w) for rule, w in zip(RULES, worst, strict=True)]
    new = [script.loosest(rule, new) for rule in new]
    assert new[0].value == 0.0025 and "0.0012 of tiny/logits.nmse on a" in new[0].source
    assert new[1] == RULES[1], "nothing was measured"
    assert new[2].value == 0.5 and "other*/logits.nmse" in new[2].source
    assert new[3].value == pytest.approx(0.94)
    assert new[4] == RULES[4], "an anchor is not moved by a figure"


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0, 0.0), (1.0, 1.0), (1.01, 1.1), (2.4e-13, 2.4e-13), (0.0999, 0.1), (123.0, 130.0)]
)
def test_limits_are_rounded_up_to_two_digits(script: ModuleType, value: float, rounded: float) -> None:
    assert script.rounded_up(value) == rounded


def test_figures_without_a_rule_are_told(script: ModuleType) -> None:
    left = list(script.without_limit(RULES, [report("a", nmse=1.0, kld_p99=0.1, mean_kld=None)]))
    assert [check.name for _, check in left] == ["logits.kld_p99"]
