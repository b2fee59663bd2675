"""Where a report goes: stdout, JSON, JUnit, HTML."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from collab_plugin.errors import CollabError
from collab_plugin.formats.output_path import check_output

if TYPE_CHECKING:
    from collab_conformance.report.verify_report import Report

STDOUT = "-"


@dataclass(frozen=True)
class Outputs:
    """Files to write, None for those not asked for; ``json`` "-" for stdout alone."""

    json: str | None
    junit: Path | None
    html: Path | None

    @property
    def json_on_stdout(self) -> bool:
        return self.json == STDOUT

    def check(self) -> None:
        """CollabError for what could not be written at the end, before the work begins."""
        if self.json not in (None, STDOUT) and not str(self.json).endswith(".json"):
            raise CollabError(
                f"--json {self.json}: a report's name ends in .json; for stdout put --json last, or write --json -"
            )
        for path in (Path(self.json) if self.json and not self.json_on_stdout else None, self.junit, self.html):
            if path is not None:
                check_output(path)
        if self.html is not None:
            check_jinja()

    def write(self, report: Report) -> None:
        """Write the files and print the report, or its JSON alone."""
        from collab_conformance.report.report_file import report_text, write_report
        from collab_conformance.report.verify_terminal import render_verdicts
        from collab_plugin.cli.output import emit
        from collab_plugin.formats.atomic_write import write_bytes

        if self.json_on_stdout:
            click.echo(report_text(report), nl=False)
        elif self.json is not None:
            write_report(Path(self.json), report)
        if self.junit is not None:
            from collab_conformance.report.junit import junit_text

            write_bytes(self.junit, junit_text(report))
        if self.html is not None:
            from collab_conformance.report.matrix import matrix_page

            write_bytes(self.html, matrix_page([report]).encode())
        if not self.json_on_stdout:
            emit(report, False, lambda console: render_verdicts(console, report))


def check_jinja() -> None:
    """CollabError saying how to install it when Jinja2 is missing."""
    if find_spec("jinja2") is None:
        raise CollabError("the HTML page needs Jinja2: pip install 'collab-plugin[verify]'")
