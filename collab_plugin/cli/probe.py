"""`collab-plugin probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option, warn
from collab_plugin.cli.pairs import pairs
from collab_plugin.cli.plan import used_callback
from collab_plugin.cli.threads import threads_option


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--stats", type=click.Path(path_type=Path), required=True, help="Stats of `calibrate`, or any imatrix GGUF."
)
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Text, .jsonl or .parquet to measure on, the calibration text if nothing better; may be repeated.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    show_default="twice those of the stats",
    help="Tokens that may run through the model in all; what the output file took already counts.",
)
@click.option("--ctx", type=click.IntRange(16, 2**20), show_default="of the stats", help="Tokens a window.")
@click.option("--engine", default="llamacpp", show_default=True, help="Engine that runs the model (see `plugins`).")
@click.option(
    "--experts-used",
    callback=used_callback,
    metavar="N|auto",
    help="Experts a token uses in the prunings that are probed, as for `plan`.",
)
@click.option(
    "--criterion",
    default="auto",
    show_default=True,
    help="How experts are ranked in the prunings (see `plugins`).",
)
@click.option(
    "--criterion-option",
    "criterion_options",
    multiple=True,
    callback=pairs("alpha=0.2"),
    metavar="NAME=VALUE",
    help="Option of the criterion (see `plugins`).",
)
@click.option("--groups", type=click.Choice(["balanced", "disband"]), help="Of the prunings, as for `plan`.")
@click.option("--allow-few-tokens", is_flag=True, help="Probe prunings although calibration saw too few tokens.")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    required=True,
    help="Sensitivity document to write, or to go on with.",
)
@click.option(
    "--cluster", metavar="ADDRESS", help="Ray cluster that runs the windows: ray://HEAD:10001, or auto on a node of it."
)
@threads_option
@json_option
def command(
    model: Model,
    stats: Path,
    texts: tuple[Path, ...],
    tokens: int | None,
    ctx: int | None,
    engine: str,
    experts_used: int | Literal["auto"] | None,
    criterion: str,
    criterion_options: dict[str, str],
    groups: Literal["balanced", "disband"] | None,
    allow_few_tokens: bool,
    out: Path,
    cluster: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Measure what quantizing each part of a model costs, and what pruning costs, without a copy of it.

    Without it `plan` predicts from what was learnt on two small models. Probes that the output file holds
    already are not measured again; those of another text or model are refused.

    Example: collab-plugin probe DeepSeek-V3/ --stats stats.gguf --text prose.txt -o sensitivity.json
    """
    from collab_plugin.cli.progress import shown
    from collab_plugin.formats.output_path import check_output

    check_output(out, (model, stats, *texts))
    found = cp.probe(
        model,
        stats=stats,
        texts=texts,
        out=out,
        tokens=tokens,
        ctx=ctx,
        engine=engine,
        experts_used=experts_used,
        criterion=criterion,
        criterion_options=criterion_options,
        groups=groups,
        allow_few_tokens=allow_few_tokens,
        cluster=cluster,
        threads=threads,
        warn=warn,
        progress=shown(),
    )
    emit(found, as_json, lambda console: render_sensitivity(console, found, out))


def render_sensitivity(console: Console, found: cp.Sensitivity, out: Path) -> None:
    """Print what was measured, the largest KL divergence first."""
    table = Table("probed", "tensors", "KL divergence", "per unit of error")
    for column in table.columns[1:]:
        column.justify = "right"
    for probe in sorted(found.groups, key=lambda p: -p.kld):
        more = f" and {len(probe.tensors) - 1} more" if len(probe.tensors) > 1 else ""
        table.add_row(
            f"{probe.tensors[0]}{more}",
            str(len(probe.tensors)),
            f"{probe.kld:.5f} ± {probe.stderr:.5f}",
            f"{probe.kld / probe.error:.4f}" if probe.error > 0 else "",
        )
    for pruned in found.prunings:
        table.add_row(
            f"{pruned.expert_count} experts kept, {pruned.experts_used} a token",
            "",
            f"{pruned.kld:.5f} ± {pruned.stderr:.5f}",
            "",
        )
    console.print(table)
    console.print(
        f"{out}: {len(found.groups)} groups of tensors and {len(found.prunings)} prunings, each scored on "
        f"{found.tokens:,} tokens; {found.tokens_run:,} tokens run"
    )
