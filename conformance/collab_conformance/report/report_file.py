"""Reports as JSON files: read strictly, written whole or not at all, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collab_conformance.report.verify_report import Check, Report, TargetReport, verdict_of
from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import JsonFormat

REPORT_VERSION = 1


def _check(report: Report) -> None:
    """What the types cannot say: above all, that no verdict is better than its figures."""
    for what, names in (
        ("targets", [target.name for target in report.targets]),
        ("artifacts", [artifact.name for artifact in report.artifacts]),
    ):
        if len(set(names)) < len(names):
            raise CollabError(f"$.{what} has two entries of one name")
    for index, target in enumerate(report.targets):
        _check_target(target, f"$.targets[{index}]")


def _check_target(target: TargetReport, where: str) -> None:
    for index, check in enumerate(target.checks):
        _check_one(check, f"{where}.checks[{index}]")
    if target.verdict == "not-run" and target.checks:
        raise CollabError(f"{where}.verdict is 'not-run', but it has checks")
    found = verdict_of(target.checks)
    # A target may also fail as a whole, when its process dies, and then its checks say nothing of it.
    if target.verdict in ("pass", "skipped") and target.verdict != found:
        raise CollabError(f"{where}.verdict is {target.verdict!r}, but its checks say {found!r}")
    if target.verdict in ("skipped", "not-run") and not target.reason:
        raise CollabError(f"{where}.reason is empty; {target.verdict!r} needs one")


def _check_one(check: Check, where: str) -> None:
    if check.verdict == "pass" and check.limit is not None:
        if check.value is None:
            raise CollabError(f"{where}.verdict is 'pass' without a value to hold to its limit")
        if not check.limit.holds(check.value):
            raise CollabError(f"{where}.verdict is 'pass', but {check.value:g} is not within its limit")
    if check.verdict != "pass" and check.value is None and not check.reason:
        raise CollabError(f"{where}.reason is empty; {check.verdict!r} without a value needs one")


REPORT_FILE = JsonFormat("collab-plugin report", REPORT_VERSION, Report, 256 * 2**20, _check)


def report_schema() -> dict[str, Any]:
    """The JSON Schema of a report, published as docs/formats/report.schema.json."""
    return REPORT_FILE.schema()


def report_text(report: Report) -> str:
    """The report as JSON. ValueError for a figure that is not finite: such a check has no value, but a reason."""
    return REPORT_FILE.text(report)


def write_report(path: Path, report: Report) -> None:
    """Write the report; CollabError when the system refuses."""
    REPORT_FILE.write(path, report)


def read_report(path: Path) -> Report:
    """Read and check a report of anyone; CollabError naming the file and the JSON path of what is wrong."""
    return REPORT_FILE.read(path)
