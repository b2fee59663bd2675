"""From a figure to a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from collab_conformance.judge.limits import LimitRule, limit_of
from collab_conformance.judge.skips import Rule
from collab_conformance.report.verify_report import Check, Limit, Verdict
from collab_conformance.run.job import MeasuredFigure, named

_NO_LIMIT = "held to no limit"


def judge(measured: MeasuredFigure, target: str, limits: Sequence[LimitRule], xfails: Sequence[Rule]) -> Check:
    """Hold a figure to its limit. A figure without one is `skipped`, never `pass`.

    ``xfails``: expected failures of this target. One that fails is marked as expected; one that passes fails.
    """
    limit = limit_of(limits, target, measured.artifact, measured.name)
    verdict, reason = _verdict(measured, limit)
    rule = next((r for r in xfails if named(r.check, measured.artifact, measured.name)), None)
    expected = None
    if rule is not None and verdict == "pass":
        verdict, reason = "fail", f"expected to fail ({rule.reason}), but passed: take it out of the file"
    elif rule is not None and verdict == "fail":
        expected = rule.reason
    return Check(
        measured.level, measured.name, measured.artifact, verdict, reason, measured.value, limit, expected
    )  # fmt: skip


def _verdict(measured: MeasuredFigure, limit: Limit | None) -> tuple[Verdict, str]:
    if measured.skipped:
        return "skipped", measured.reason
    if measured.value is None:
        return "fail", measured.reason
    if limit is None:
        return "skipped", _NO_LIMIT
    if limit.holds(measured.value):
        return "pass", ""
    side = "above" if limit.bound == "at-most" else "below"
    return "fail", f"{measured.value:.3g} is {side} the limit of {limit.value:.3g} ({limit.source})"
