"""`verify`: each target in a child process, its figures judged, one report."""

from __future__ import annotations

import datetime
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from collab_conformance.judge.limits import LimitRule
from collab_conformance.judge.skips import Rule, for_target
from collab_conformance.judge.verdicts import judge
from collab_conformance.levels import artifact_level
from collab_conformance.levels.kernels_level import SHORT
from collab_conformance.levels.operands import keep_weights
from collab_conformance.pack.pack_artifact import describe
from collab_conformance.pack.pack_document import Artifact, PackDocument
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.report.verify_report import (
    ArtifactId,
    Check,
    Level,
    Report,
    TargetReport,
    Verdict,
    verdict_of,
)
from collab_conformance.run.job import Begun, Job, MeasuredFigure, Skip, Subject, title
from collab_conformance.run.target_program import target_program
from collab_plugin import __version__
from collab_plugin.engines.child_process import run
from collab_plugin.engines.target import TargetInfo, TargetProvider
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.formats.json_document import from_plain
from collab_plugin.plugins.manager import pick, registry

TIME_LIMIT = 3600.0
"""Seconds for one target: llama.cpp on Vulkan's software driver compiles shaders for minutes."""
Progress = Callable[[str, str, int, int], None]
"""Called with (target, check, checks done, checks in all) when a check begins."""


def verify(
    subjects: Sequence[Subject],
    infos: Sequence[TargetInfo],
    *,
    levels: Sequence[Level],
    short: bool,
    threads: int,
    seed: int,
    limits: Sequence[LimitRule],
    skips: Sequence[Rule] = (),
    xfails: Sequence[Rule] = (),
    time_limit: float = TIME_LIMIT,
    progress: Progress,
) -> Report:
    """Hold every subject to its pack on every target, one target after the other.

    Absent targets become `not-run`; one that dies or overruns ``time_limit`` (seconds a target) fails, and the
    next one is run. A slow target gets the short form, which its reason says. CollabError for an artifact or pack
    that cannot be read, or a target without a provider.
    """
    found = {s.name: describe(Path(s.artifact)) for s in subjects}  # hashes the file, so once
    documents = {s.name: read_pack(Path(s.pack)).document for s in subjects}
    ids = tuple(identify(name, found[name], documents[name]) for name in found)
    files = [m for name in found for m in artifact_level.measured(name, found[name], documents[name].artifact)]
    if "artifact" not in levels:
        files = []
    reports = []
    with tempfile.TemporaryDirectory(prefix="collab-operands-") as scratch:
        for info in infos:
            brief = short or bool(info.slow)
            mine = tuple(s for s in subjects if s.short or not info.slow)
            job = Job(info.name, mine, tuple(levels), brief, threads, seed, scratch, ())
            provider = pick(registry().targets, info.engine, "target")
            if "kernels" in levels and info.absent is None and provider.command(info.name):
                keep_weights(SHORT if brief else TYPES, seed, Path(scratch), short=brief)
            report = run_target(
                info,
                provider,
                job,
                [m for m in files if m.artifact in {s.name for s in mine}],
                limits=limits,
                skips=skips,
                xfails=xfails,
                time_limit=time_limit,
                progress=progress,
            )
            reports.append(_completed(report, info, ids, mine, short))
    return Report(machine(), _now(), short, versions(), ids, tuple(reports), ())


def _completed(
    report: TargetReport, info: TargetInfo, ids: Sequence[ArtifactId], mine: Sequence[Subject], short: bool
) -> TargetReport:
    """With the fingerprints of what was run there, and why it was less than asked for."""
    if report.verdict == "not-run":
        return report
    names = {subject.name for subject in mine}
    prints = {each.name: each.plan_fingerprint for each in ids if each.name in names}
    less = f"short form: {info.slow}" if info.slow and not short else ""
    return replace(report, plan_fingerprint=prints, reason="; ".join(filter(None, [report.reason, less])))


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


def identify(name: str, found: Artifact, document: PackDocument) -> ArtifactId:
    """What the report says of an artifact and its pack."""
    recorder = " ".join(part for part in (document.recorder.name, document.recorder.device) if part)
    return ArtifactId(
        name,
        found.sha256,
        found.bytes,
        found.architecture,
        found.plan_fingerprint,
        document.tensors_sha256,
        recorder,
    )


def machine() -> str:
    """This machine in words: name, system, processor."""
    return ", ".join(part for part in (platform.node(), platform.platform(terse=True), platform.machine()) if part)


def versions() -> dict[str, str]:
    """What decides the parent's part of the figures."""
    return {
        "collab-plugin": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gguf": version("gguf"),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
