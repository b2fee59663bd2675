"""`collab-plugin inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option, plain
from collab_plugin.cli.threads import threads_option

MOST_PROBLEMS = 20


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("--check", "artifact", type=MODEL, metavar="ARTIFACT", help="Tell whether this is as --plan says.")
@click.option("--plan", type=click.Path(path_type=Path), help="Plan that the artifact was made by.")
@click.option("--stats", type=click.Path(path_type=Path), help="The plan's stats file, when it was moved.")
@click.option("--samples", type=click.Path(path_type=Path), help="The plan's samples file, when it was moved.")
@click.option(
    "--pieces",
    default="128",
    show_default=True,
    metavar="N|all",
    help="Pieces that are made anew of MODEL and compared.",
)
@click.option("--seed", default=0, show_default=True, help="What the pieces are drawn with.")
@threads_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    model: Model | None,
    artifact: Model | None,
    plan: Path | None,
    stats: Path | None,
    samples: Path | None,
    pieces: str,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Show a model's layers, experts, router and bytes by role; or check an artifact against its plan and source.

    MODEL is a GGUF file (any shard of a split one), a Hugging Face folder, or an address such as
    hf://organization/name, of which the headers alone are read.

    With --check, MODEL is the source that the plan was made for; without it the plan alone is held against ARTIFACT, a
    GGUF or a folder. The exit code is 1 when something differs.

    Example: collab-plugin inspect DeepSeek-V3/

    Example: collab-plugin inspect --check out.gguf --plan plan.json DeepSeek-V3/
    """
    if artifact is not None:
        if plan is None:
            raise cp.CollabError("`plan` is missing: give the plan that `artifact` was made by")
        from collab_plugin.cli.progress import shown

        found = cp.check(
            artifact,
            plan,
            model,
            stats=stats,
            samples=samples,
            pieces=_pieces(pieces),
            seed=seed,
            threads=threads,
            progress=shown(),
        )
        emit(found, as_json, lambda console: _render_check(console, found))
        context.exit(1 if found.problems else 0)
    if model is None:
        raise cp.CollabError("`model` is missing: give a file, a folder or an address")
    if plan is not None:
        raise cp.CollabError("`plan` is of use only together with `artifact`")
    checkpoint = cp.open_checkpoint(model)
    topology = cp.inspect(checkpoint)
    result = {**plain(topology), "format": checkpoint.format, "notes": list(checkpoint.notes)}
    emit(result, as_json, lambda console: _render(console, checkpoint, topology))


def _pieces(value: str) -> int | Literal["all"]:
    if value == "all":
        return "all"
    try:
        return int(value)
    except ValueError:
        raise cp.CollabError(f"`pieces` {value} is neither all nor a number") from None


def _render_check(console: Console, found: cp.CheckedArtifact) -> None:
    for problem in found.problems[:MOST_PROBLEMS]:
        console.print(problem, markup=False)
    if more := found.problems[MOST_PROBLEMS:]:
        console.print(f"and {len(more)} more")
    pieces = f"; {found.compared:,} pieces of {found.tiles:,} tiles were made anew" if found.compared else ""
    verdict = "is not what the plan says" if found.problems else "is as the plan says"
    console.print(f"{found.path}: {verdict} ({found.tensors:,} tensors{pieces})", markup=False)


def _render(console: Console, checkpoint: cp.Checkpoint, topology: cp.Topology) -> None:
    t = topology
    console.print(f"[bold]{t.name}[/bold]: {t.architecture}, {checkpoint.format}")
    groups = f", {t.groups} groups of which {t.groups_used} are used" if t.groups > 1 else ""
    shared = f", {t.shared_experts} shared" if t.shared_experts else ""
    console.print(
        f"{t.block_count} layers, {len(t.moe_layers)} of them with {t.expert_count} experts, "
        f"top-{t.experts_used}{shared}{groups}; {t.gating} router"
        f"{'' if t.renormalises else ' without renormalisation'}"
    )
    if t.prediction_layers:
        from collab_plugin.checkpoint.prediction_layers import layers_in_words

        console.print(f"{layers_in_words(t.prediction_layers)} beside, for speculative decoding")
    table = Table("role", "parameters", "bytes", "bpw", "share")
    for column in table.columns[1:]:
        column.justify = "right"
    for role, size in sorted(t.role_bytes.items(), key=lambda item: -item[1]):
        count = t.role_parameters[role]
        table.add_row(role, f"{count:,}", f"{size:,}", f"{size * 8 / count:.3f}", f"{size / t.total_bytes:.1%}")
    table.add_section()
    table.add_row(
        "all",
        f"{t.total_parameters:,}",
        f"{t.total_bytes:,}",
        f"{t.total_bytes * 8 / t.total_parameters:.3f}",
        "",
    )
    console.print(table)
    for note in checkpoint.notes:
        console.print(f"note: {note}")
