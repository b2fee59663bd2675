"""The run that docs/conformance.md shows: a report that is read strictly, the page made of it, the same targets."""

from __future__ import annotations

from pathlib import Path

import pytest
from collab_conformance.report.matrix import matrix_page
from collab_conformance.report.report_file import read_report
from collab_conformance.report.verify_report import exit_code

DOCS = Path(__file__).parents[2] / "docs"
RUNS = sorted((DOCS / "reports").glob("*.json"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_page_and_table_are_of_the_report(path: Path) -> None:
    report = read_report(path)
    assert exit_code(report) == 0
    page = path.with_suffix(".html").read_text("utf-8")
    assert page == matrix_page([report]), "make it again: collab-plugin verify merge REPORT.json -o PAGE.html"
    text = (DOCS / "conformance.md").read_text("utf-8")
    for target in report.targets:
        assert f"| `{target.name}` | {target.verdict.replace('-', ' ')} |" in text


def test_there_is_a_run() -> None:
    assert RUNS
