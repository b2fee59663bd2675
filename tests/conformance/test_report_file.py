"""Reports as files: anyone's may come, and none may look better than its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from collab_conformance.report.report_file import read_report, report_schema, report_text, write_report
from collab_conformance.report.verify_report import exit_code, verdict_of
from hand_reports import ABSENT, ALL, BAD, EXPECTED, FAILED, FIDELITY, GOOD, PASSED, SKIPPED, XFAILED, report

from collab_plugin.errors import CollabError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, whole = tmp_path / "report.json", replace(ALL, fidelity=(FIDELITY,))
    write_report(path, whole)
    assert read_report(path) == whole
    jsonschema.validate(json.loads(path.read_text()), report_schema())


def test_schema_refuses_what_reading_refuses(tmp_path: Path) -> None:
    data = json.loads(report_text(ALL))
    data["targets"][0]["verdict"] = "passed"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, report_schema())


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("format", to="collab-plugin plan"), "is not a report"),
        (_set("version", to=2), "report version 2"),
        (_set("version", to=True), "report version True"),
        (_set("machine", to=3), r"\$.machine is '3', not str"),
        (_set("targets", 1, "verdict", to="pass"), r"\$.targets\[1\].verdict is 'pass', but its checks say 'fail'"),
        (_set("targets", 0, "verdict", to="not-run"), "'not-run', but it has checks"),
        (_set("targets", 4, "verdict", to="pass"), "'pass', but its checks say 'skipped'"),
        (_set("targets", 4, "reason", to=""), r"\$.targets\[4\].reason is empty"),
        (_set("targets", 0, "checks", 0, "value", to=1.0), r"checks\[0\].verdict is 'pass', but 1 is not within"),
        (_set("targets", 0, "checks", 0, "value", to=None), "'pass' without a value"),
        (_set("targets", 0, "checks", 6, "reason", to=""), r"checks\[6\].reason is empty"),
        (_set("targets", 0, "checks", 0, "value", to=float("nan")), "is not finite"),
        (_set("targets", 1, "name", to="llamacpp:cpu"), r"\$.targets has two entries of one name"),
        (_set("targets", 0, "more", to=1), "unknown member 'more'"),
    ],
)
def test_refuses_in_one_line(change: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    data = json.loads(report_text(ALL))
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CollabError, match=says) as caught:
        read_report(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"format": "collab-plugin report"}', "\ud800"])
def test_refuses_what_is_no_report(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CollabError):
        read_report(path)
    with pytest.raises(CollabError, match="cannot read"):
        read_report(tmp_path / "nowhere.json")


def test_exit_code_is_zero_only_when_all_that_was_run_passed() -> None:
    assert exit_code(report(PASSED)) == 0
    assert exit_code(report(PASSED, XFAILED, ABSENT, SKIPPED)) == 0
    assert exit_code(report(PASSED, FAILED)) == 1
    assert exit_code(report(ABSENT)) == 1
    assert exit_code(report(SKIPPED, ABSENT)) == 1
    assert exit_code(report()) == 1


def test_verdict_of_checks() -> None:
    assert verdict_of(GOOD) == "pass"
    assert verdict_of((*GOOD, BAD)) == "fail"
    assert verdict_of((*GOOD, EXPECTED)) == "pass"
    assert verdict_of((EXPECTED,)) == "skipped"
    assert verdict_of(GOOD[-1:]) == "skipped"
    assert verdict_of(()) == "skipped"
