"""`collab-plugin report`."""

from __future__ import annotations

from pathlib import Path

import click

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.setup_options import setup_of, setup_options
from collab_plugin.placement.run_setup import KvType


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--stats",
    "stats",
    type=click.Path(path_type=Path),
    help="Stats that the plan used; looked for beside the plan otherwise.",
)
@click.option("--model", "model", type=MODEL, help="The model, for what its metadata says.")
@click.option(
    "--evaluation",
    "evaluations",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Output of `evaluate --json` on the plan's file; may be repeated.",
)
@click.option(
    "--rivals",
    "rivals",
    type=click.Path(path_type=Path),
    help="CSV of other files to compare with: rival, bytes, mean_kld.",
)
@setup_options
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="HTML page to write.")
@click.option("--plots", type=click.Path(path_type=Path), help="Folder for the plots as PNG files.")
@json_option
def command(
    plan: Path,
    stats: Path | None,
    model: Model | None,
    evaluations: tuple[Path, ...],
    rivals: Path | None,
    context: int,
    sequences: int,
    kv_type: KvType,
    reserve: str,
    out: Path | None,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Show what a plan decided and how good it is: one page, plots, or tables on the terminal.

    Everything but the plan is optional; the report says what it could not show without. The page holds its
    plots and loads nothing from anywhere.

    Example: collab-plugin report plan.json -o report.html
    """
    from collab_plugin.cli.progress import shown
    from collab_plugin.reports.plan_terminal import render_report
    from collab_plugin.reports.write import check_report_outputs

    check_report_outputs(out, plots)
    setup = setup_of(context, sequences, kv_type, reserve)
    facts = cp.report(plan, stats=stats, model=model, evaluations=evaluations, rivals=rivals, setup=setup)
    written = cp.write_report(facts, out, plots, progress=shown())
    if as_json:
        emit(facts, True, lambda console: None)
    elif written:
        for path in written:
            click.echo(f"wrote {path}")
    else:
        emit(facts, False, lambda console: render_report(console, facts))
