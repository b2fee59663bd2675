"""Targets that were run one at a time, as one report: figures stay, verdicts follow from today's limits."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from collab_conformance.limits import LimitRule
from hand_reports import ABSENT, DIED, GOOD, PASSED, SKIPPED, report

from collab_plugin.errors import CollabError
from collab_plugin.target import TargetInfo

SCRIPT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "conformance" / "join_reports.py"))
RULES = tuple(
    LimitRule(check, "*", bound, value, "a test")
    for check, bound, value in (
        ("kernels.*", "at-most", 5e-4),
        ("routing.*", "at-most", 0.01),
        ("logits.same_top1", "at-least", 0.9),
        ("logits.*", "at-most", 1e-3),
    )
)
HERE = TargetInfo("llamacpp:cpu", "llamacpp", "b1", None)
LACK = TargetInfo("llamacpp:cuda:0", "llamacpp", "", None, absent="no CUDA device")


def test_joined_and_judged_anew() -> None:
    stale = replace(PASSED, name="vllm:cpu", verdict="fail", reason="logits.nmse: above the limit of before")
    stale = replace(stale, checks=tuple(replace(c, verdict="fail", reason="old") if c.value else c for c in GOOD))
    joined = SCRIPT["join"]([report(PASSED, ABSENT), report(stale)], [HERE, LACK], RULES)
    assert [(t.name, t.verdict) for t in joined.targets] == [
        ("llamacpp:cpu", "pass"),
        ("llamacpp:cuda:0", "not-run"),
        ("vllm:cpu", "pass"),
    ]
    for target in (joined.targets[0], joined.targets[2]):
        assert [c.value for c in target.checks] == [c.value for c in GOOD]
        assert {c.limit.source for c in target.checks if c.limit} == {"a test"}
        assert target.checks[-1].reason == "no such cache"
        assert target.reason == ""


def test_tighter_limits_fail_and_the_dead_stay_dead() -> None:
    tight = (LimitRule("logits.nmse", "*", "at-most", 1e-9, "a test"), *RULES)
    joined = SCRIPT["join"]([report(PASSED), report(DIED)], [], tight)
    assert [t.verdict for t in joined.targets] == ["fail", "fail"]
    assert "logits.nmse" in joined.targets[0].reason
    assert joined.targets[1].reason == DIED.reason
    (skipped,) = SCRIPT["join"]([report(SKIPPED)], [], RULES).targets
    assert (skipped.verdict, skipped.reason) == ("skipped", SKIPPED.reason)


def test_reports_must_be_of_one_kind() -> None:
    with pytest.raises(CollabError, match="different machines"):
        SCRIPT["join"]([report(PASSED), report(DIED, machine="other")], [], RULES)
    with pytest.raises(CollabError, match="in two"):
        SCRIPT["join"]([report(PASSED), report(PASSED)], [], RULES)
