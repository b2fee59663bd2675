"""Reports as JSON files: read strictly, written whole or not at all, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collab_conformance.report.verify_report import REPORT_VERSION, Check, Report, TargetReport, verdict_of
from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.json_document import from_plain, schema_of, to_plain

FORMAT = "collab-plugin report"
MAX_BYTES = 256 * 2**20


def report_schema() -> dict[str, Any]:
    """The JSON Schema of a report, published as docs/formats/report.schema.json."""
    schema = schema_of(Report)
    schema["properties"] = {
        "format": {"const": FORMAT},
        **schema["properties"],
        "version": {"const": REPORT_VERSION},
    }
    schema["required"] = list(schema["properties"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FORMAT, **schema}


def report_text(report: Report) -> str:
    """The report as JSON. ValueError for a figure that is not finite: such a check has no value, but a reason."""
    return json.dumps({"format": FORMAT, **to_plain(report)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_report(path: Path, report: Report) -> None:
    """Write the report; CollabError when the system refuses."""
    write_bytes(path, report_text(report).encode())


def read_report(path: Path) -> Report:
    """Read and check a report of anyone; CollabError naming the file and the JSON path of what is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CollabError(f"{path} is larger than any report")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CollabError(f"cannot read the report {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CollabError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CollabError(f"{path} is not a report of collab-plugin verify")
    version = data.get("version")
    if version != REPORT_VERSION or isinstance(version, bool):
        raise CollabError(f"{path} has report version {version!r}; this collab-plugin reads {REPORT_VERSION}")
    try:
        report = from_plain(Report, data)
        _check(report)
    except CollabError as error:
        raise CollabError(f"{path}: {error}") from None
    return report


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
