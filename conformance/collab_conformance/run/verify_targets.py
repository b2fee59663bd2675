"""`verify`: one target after the other, and one report."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from collab_conformance.judge.limits import LimitRule
from collab_conformance.judge.skips import Rule
from collab_conformance.levels import artifact_level
from collab_conformance.levels.kernels_level import SHORT
from collab_conformance.levels.operands import keep_weights
from collab_conformance.pack.pack_artifact import describe
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.report.verify_report import ArtifactId, Level, Report, TargetReport
from collab_conformance.run.job import Job, Subject
from collab_conformance.run.run_identity import identify, machine, placement_words, versions
from collab_conformance.run.run_target import TIME_LIMIT, Progress, run_target
from collab_plugin import TargetInfo
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.plugins.manager import pick, registry


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
    placement: Path | None = None,
    progress: Progress,
) -> Report:
    """Hold every subject to its pack on every target, one target after the other.

    Absent targets become `not-run`; one that dies or overruns ``time_limit`` (seconds a target) fails, and the
    next one is run. A slow target gets the short form, which its reason says. ``placement``: the document that says in
    which memory experts lie; its name and hash are among each target's versions. CollabError for an artifact, a pack or
    a placement that cannot be read, or a target without a provider.
    """
    found = {s.name: describe(Path(s.artifact)) for s in subjects}  # hashes the file, so once
    documents = {s.name: read_pack(Path(s.pack)).document for s in subjects}
    ids = tuple(identify(name, found[name], documents[name]) for name in found)
    placed = {} if placement is None else {"placement": placement_words(placement)}
    where = None if placement is None else str(placement.resolve())
    files = [m for name in found for m in artifact_level.measured(name, found[name], documents[name].artifact)]
    if "artifact" not in levels:
        files = []
    reports = []
    with tempfile.TemporaryDirectory(prefix="collab-operands-") as scratch:
        for info in infos:
            brief = short or bool(info.slow)
            mine = tuple(s for s in subjects if s.short or not info.slow)
            job = Job(
                info.name,
                mine,
                tuple(levels),
                brief,
                threads,
                seed,
                scratch,
                (),
                where,
            )
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
            report = replace(report, versions={**report.versions, **placed})
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


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
