"""One target in a child process, and its figures judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from collab_conformance.judge.limits import LimitRule
from collab_conformance.judge.skips import Rule, for_target
from collab_conformance.judge.verdicts import judge
from collab_conformance.report.verify_report import Check, TargetReport, Verdict, verdict_of
from collab_conformance.run.job import Begun, Job, MeasuredFigure, Skip, title
from collab_conformance.run.target_program import target_program
from collab_plugin import TargetInfo, TargetProvider
from collab_plugin.engines.child_process import run
from collab_plugin.formats.json_document import from_plain

TIME_LIMIT = 3600.0
"""Seconds for one target: llama.cpp on Vulkan's software driver compiles shaders for minutes."""
Progress = Callable[[str, str, int, int], None]
"""Called with (target, check, checks done, checks in all) when a check begins."""


def run_target(
    info: TargetInfo,
    provider: TargetProvider,
    job: Job,
    files: Sequence[MeasuredFigure] = (),
    *,
    limits: Sequence[LimitRule],
    skips: Sequence[Rule] = (),
    xfails: Sequence[Rule] = (),
    time_limit: float = TIME_LIMIT,
    progress: Progress,
) -> TargetReport:
    """Run one target. ``files``: what the artifact level measured, which is the same on every target."""
    if info.absent is not None:
        return _report(info, "not-run", info.absent, (), 0.0)
    mine = for_target(skips, info.name)
    whole = next((rule for rule in mine if rule.check == "*"), None)
    if whole is not None:
        return _report(info, "skipped", whole.reason, (), 0.0)
    listener = Listener(info.name, progress, len(files))
    began = time.monotonic()
    died = run(
        target_program("collab_conformance.run.target_child", provider, info.name),
        replace(job, skips=(*job.skips, *(Skip(rule.check, rule.reason) for rule in mine))),
        listener.hear,
        limit=time_limit,
    ).why
    seconds = time.monotonic() - began
    expected = for_target(xfails, info.name)
    checks = [judge(m, info.name, limits, expected) for m in [*files, *listener.measured]]
    if not died:
        return _report(info, verdict_of(checks), _why(checks), checks, seconds)
    at = listener.current
    where = f"in {title(at.artifact, at.name)}" if at else "before the first check"
    if at is not None:
        lost = MeasuredFigure(at.level, at.name, at.artifact, None, died, False)
        checks.append(judge(lost, info.name, limits, expected))
    return _report(info, "fail", f"{where}: {died}", checks, seconds)


class Listener:
    """Keeps what a child has measured, and the check that it is in."""

    def __init__(self, target: str, progress: Progress, before: int) -> None:
        self.measured: list[MeasuredFigure] = []
        self.current: Begun | None = None
        self._target, self._progress, self._before = target, progress, before

    def hear(self, line: Mapping[str, Any]) -> None:
        if "begun" in line:
            self.current = from_plain(Begun, line["begun"])
            name = title(self.current.artifact, self.current.name)
            self._progress(self._target, name, self._before + self.current.done, self._before + self.current.total)
        elif "measured" in line:
            self.measured.append(from_plain(MeasuredFigure, line["measured"]))
            self.current = None


def _why(checks: Sequence[Check]) -> str:
    """The first unexpected failure, for the table's reason."""
    failed = [check for check in checks if check.verdict == "fail" and check.expected is None]
    if not failed:
        return ""
    first = f"{title(failed[0].artifact, failed[0].name)}: {failed[0].reason}"
    return first if len(failed) == 1 else f"{first} (and {len(failed) - 1} more checks)"


def _report(info: TargetInfo, verdict: Verdict, reason: str, checks: Sequence[Check], seconds: float) -> TargetReport:
    names = [title(check.artifact, check.name) for check in checks]
    return TargetReport(
        name=info.name,
        verdict=verdict,
        reason=reason,
        engine=info.engine,
        build=info.build,
        device=info.device,
        versions=info.versions,
        plan_fingerprint={},
        figures={n: c.value for n, c in zip(names, checks, strict=True) if c.value is not None},
        limits={n: c.limit for n, c in zip(names, checks, strict=True) if c.limit is not None},
        checks=tuple(checks),
        seconds=seconds,
    )
