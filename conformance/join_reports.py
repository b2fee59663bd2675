"""One report of a machine whose targets were run one at a time, held to the limits of today.

    python conformance/join_reports.py REPORT.json... -o report.json [--html page.html]

The figures are the reports'; the limits are limits.json's. Reports must be of one machine, and their artifacts and
packs among those of the largest. Targets that this machine lacks are added as `not-run`; of those that are in no
report nothing is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from collab_conformance.job import Measured, title
from collab_conformance.judge import judge
from collab_conformance.limits import LimitRule, read_limits
from collab_conformance.report.document import Report, TargetReport, verdict_of
from collab_conformance.report.matrix import matrix_page
from collab_conformance.report.report_file import read_report, write_report
from collab_conformance.report.terminal import render_verdicts
from collab_conformance.targets import find_targets
from rich.console import Console

from collab_plugin.atomic import write_bytes
from collab_plugin.errors import CollabError
from collab_plugin.target import TargetInfo


def judged(target: TargetReport, limits: Sequence[LimitRule]) -> TargetReport:
    """The target's figures held to ``limits``; one that died stays failed, one left out stays so."""
    if not target.checks:
        return target
    checks = []
    for check in target.checks:
        skipped = check.verdict == "skipped" and check.value is None
        # Of a figure the reason is the old limit's.
        reason = check.reason if check.value is None else ""
        measured = Measured(check.level, check.name, check.artifact, check.value, reason, skipped)
        checks.append(judge(measured, target.name, limits, ()))
    died = target.verdict == "fail" and not any(check.verdict == "fail" for check in target.checks)
    failed = next((check for check in checks if check.verdict == "fail"), None)
    why = f"{title(failed.artifact, failed.name)}: {failed.reason}" if failed else ""
    return replace(
        target,
        checks=tuple(checks),
        verdict=target.verdict if died else verdict_of(checks),
        reason=target.reason if died else why,
        limits={title(c.artifact, c.name): c.limit for c in checks if c.limit is not None},
    )


def lacking(info: TargetInfo) -> TargetReport:
    """A target that is not here. CollabError for one that is."""
    if info.absent is None:
        raise CollabError(f"{info.name} is here")
    return TargetReport(
        info.name, "not-run", info.absent, info.engine, info.build, info.device, info.versions, {}, {}, {}, (), 0.0
    )


def join(reports: Sequence[Report], infos: Sequence[TargetInfo], limits: Sequence[LimitRule]) -> Report:
    """See the module. CollabError for reports that are not of one kind."""
    first = max(reports, key=lambda report: len(report.artifacts))
    for other in reports:
        same = (other.machine, other.short) == (first.machine, first.short)
        if not same or not set(other.artifacts) <= set(first.artifacts):
            raise CollabError("the reports are of different machines, artifacts or forms")
    targets = [judged(target, limits) for report in reports for target in report.targets if target.verdict != "not-run"]
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        raise CollabError("a target is in two of the reports")
    targets += [lacking(info) for info in infos if info.absent is not None and info.name not in names]
    return replace(
        first, created=max(r.created for r in reports), targets=tuple(sorted(targets, key=lambda target: target.name))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--html", type=Path)
    options = parser.parse_args()
    try:
        joined = join([read_report(path) for path in options.reports], find_targets(), read_limits())
    except CollabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_report(options.output, joined)
    if options.html is not None:
        write_bytes(options.html, matrix_page([joined]).encode())
    render_verdicts(Console(width=160), joined)
    return 0


if __name__ == "__main__":
    sys.exit(main())
