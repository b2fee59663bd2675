"""`collab-plugin verify merge`."""

from __future__ import annotations

from pathlib import Path

import click

from collab_plugin.cli.output import emit, json_option


@click.command()
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="HTML page to write.")
@json_option
def command(reports: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Put the reports of many machines side by side on one page.

    The page loads nothing from anywhere. The exit code says that it was written, not that targets passed.

    Example: collab-plugin verify merge mac.json linux.json windows.json -o matrix.html
    """
    from collab_conformance.cli.outputs import Outputs
    from collab_conformance.report.matrix import matrix_page
    from collab_conformance.report.report_file import read_report
    from collab_conformance.report.verify_report import exit_code
    from collab_conformance.report.verify_terminal import totals
    from collab_plugin.formats.atomic_write import write_bytes
    from collab_plugin.reports.number_words import clean

    Outputs(None, None, output).check()
    found = [read_report(path) for path in reports]
    write_bytes(output, matrix_page(found).encode())
    result = {
        "output": str(output),
        "reports": [{"machine": r.machine, "passed": exit_code(r) == 0, "totals": totals(r)} for r in found],
    }
    emit(
        result,
        as_json,
        lambda console: console.print(
            "\n".join([*(clean(f"{r.machine}: {totals(r)}") for r in found), f"wrote {output}"]),
            markup=False,
            highlight=False,
        ),
    )
