"""`collab-plugin report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from collab_plugin.cli.output import emit, json_option
from collab_plugin.errors import CollabError

if TYPE_CHECKING:
    from collab_plugin.plans.plan import Plan
    from collab_plugin.reports.gather import Extras


@click.command()
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--stats",
    "stats_path",
    type=click.Path(path_type=Path),
    help="Stats that the plan used; looked for beside the plan otherwise.",
)
@click.option("--model", "model_path", type=click.Path(path_type=Path), help="The model, for what its metadata says.")
@click.option(
    "--evaluation",
    "evaluation_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Output of `evaluate --json` on the plan's file; may be repeated.",
)
@click.option(
    "--rivals",
    "rivals_path",
    type=click.Path(path_type=Path),
    help="CSV of other files to compare with: rival, bytes, mean_kld.",
)
@click.option(
    "--ctx",
    type=click.IntRange(1, 2**24),
    default=8192,
    show_default=True,
    help="Context in tokens, for the KV cache.",
)
@click.option("--reserve", default="1GiB", show_default=True, help="Memory to leave free: 1GiB, 4GB, or bytes.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="HTML page to write.")
@click.option("--plots", "plots_path", type=click.Path(path_type=Path), help="Folder for the plots as PNG files.")
@json_option
def command(
    plan_path: Path,
    stats_path: Path | None,
    model_path: Path | None,
    evaluation_paths: tuple[Path, ...],
    rivals_path: Path | None,
    ctx: int,
    reserve: str,
    output: Path | None,
    plots_path: Path | None,
    as_json: bool,
) -> None:
    """Show what a plan decided and how good it is: one page, plots, or tables on the terminal.

    Everything but the plan is optional; the report says what it could not show without. The page holds its
    plots and loads nothing from anywhere.

    Example: collab-plugin report plan.json -o report.html
    """
    from collab_plugin.cli.progress import shown
    from collab_plugin.plans.plan_file import read_plan
    from collab_plugin.plugins.manager import registry
    from collab_plugin.reports.gather import gather
    from collab_plugin.reports.plan_terminal import render_report
    from collab_plugin.reports.write import write_report

    if output or plots_path:
        _check_outputs(output, plots_path)
    plan = read_plan(plan_path)
    stats = stats_path or _beside(plan, plan_path.parent)
    extras = _extras(plan, stats, model_path, evaluation_paths, rivals_path, ctx, reserve)
    facts = gather(plan, extras, registry().criteria)
    written = write_report(facts, output, plots_path, shown())
    if as_json:
        emit(facts, True, lambda console: None)
    elif written:
        for path in written:
            click.echo(f"wrote {path}")
    else:
        emit(facts, False, lambda console: render_report(console, facts))


def _check_outputs(output: Path | None, plots: Path | None) -> None:
    from collab_plugin.reports.check_extra import check_extra

    check_extra()
    for path in (output, plots):
        if path is not None and not path.parent.is_dir():
            raise CollabError(f"{path.parent} does not exist; make the folder first")
    if plots is not None and plots.exists() and not plots.is_dir():
        raise CollabError(f"--plots {plots} is a file; give a folder")


def _beside(plan: Plan, folder: Path) -> Path | None:
    from collab_plugin.reports.gather import stats_beside

    return stats_beside(plan, folder)


def _extras(
    plan: Plan,
    stats: Path | None,
    model: Path | None,
    evaluations: tuple[Path, ...],
    rivals: Path | None,
    ctx: int,
    reserve: str,
) -> Extras:
    from collab_plugin.planning.budget import parse_budget
    from collab_plugin.plugins.open_checkpoint import open_checkpoint
    from collab_plugin.reports.gather import Extras
    from collab_plugin.reports.measured import read_evaluation, read_rivals
    from collab_plugin.stats.stats_file import read_stats, stats_sha256

    known = plan.calibration.sha256 if plan.calibration else None
    found = None if stats is None else read_stats(stats)
    return Extras(
        stats=found,
        stats_same=stats is None or found is None or stats_sha256(stats, found) == known,
        model=None if model is None else open_checkpoint(model),
        evaluations=tuple(read_evaluation(path) for path in evaluations),
        rivals=() if rivals is None else read_rivals(rivals, plan.source.name),
        context=ctx,
        reserve=0 if reserve == "0" else parse_budget(reserve, plan.source.parameters),
    )
