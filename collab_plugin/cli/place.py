"""`collab-plugin place`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option, plain
from collab_plugin.cli.setup_options import setup_of, setup_options
from collab_plugin.cli.threads import threads_option
from collab_plugin.placement.run_setup import KvType


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--tier",
    "tiers",
    multiple=True,
    required=True,
    metavar="NAME=SIZE",
    help="A memory, the fastest first: gpu=24GB, ram=96GB, unified=128GB, disk; gpu=24GB@1008GB is 1008 GB a second.",
)
@click.option("--stats", type=click.Path(path_type=Path), help="What `calibrate` wrote of this model or its original.")
@click.option("--trace", type=click.Path(path_type=Path), help="Compare policies on this trace (`calibrate --trace`).")
@click.option("--policy", metavar="NAME", help="Placement policy (see `plugins`).", show_default="the fastest one")
@click.option(
    "--policy-parameter",
    "parameters",
    multiple=True,
    metavar="NAME=NUMBER",
    help="A parameter of --policy: decay=0.9.",
)
@click.option("--measure", is_flag=True, help="Time the memory, the disk and each type's kernel on this machine.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw hit rates over tier sizes here (needs --trace).")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Placement to write.")
@click.option("--engine", default="llamacpp", show_default=True, help="Engine that measures (see `plugins`).")
@setup_options
@threads_option
@json_option
def command(
    model: Model,
    tiers: tuple[str, ...],
    stats: Path | None,
    trace: Path | None,
    policy: str | None,
    parameters: tuple[str, ...],
    measure: bool,
    plot: Path | None,
    out: Path | None,
    engine: str,
    context: int,
    sequences: int,
    kv_type: KvType,
    reserve: str,
    threads: int,
    as_json: bool,
) -> None:
    """Say which experts lie in which memory, and what that gives.

    Shows what lies where, the share of expert reads that each memory serves, the speed that follows and its roof, what
    each placement policy gives, and what each engine can do with it.

    Example: collab-plugin place out.gguf --stats stats.gguf --tier gpu=24GB --tier ram=96GB -o placement.json
    """
    from collab_plugin.cli.progress import shown
    from collab_plugin.formats.output_path import check_output

    if plot is not None and trace is None:
        raise click.UsageError("--plot needs --trace FILE")
    inputs = [model, *(path for path in (stats, trace) if path is not None and not path.is_dir())]
    for path in (out, plot):
        if path is not None:
            check_output(path, tuple(inputs))
    placed = cp.place(
        model,
        tiers=tiers,
        stats=stats,
        trace=trace,
        policy=policy,
        parameters=_numbers(parameters),
        setup=setup_of(context, sequences, kv_type, reserve),
        measure=measure,
        engine=engine,
        threads=threads,
        progress=shown(),
    )
    if out is not None:
        cp.write_placement(out, placed.placement)
    if plot is not None and trace is not None:
        _draw(model, trace, stats, plot)
    result = {**plain(placed), "output": None if out is None else str(out)}
    emit(result, as_json, lambda console: _render(console, placed, out))


def _numbers(given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise click.UsageError(f"--policy-parameter {text!r} is not NAME=NUMBER") from None
    return found


def _draw(model: Model, trace: Path, stats: Path | None, plot: Path) -> None:
    from collab_plugin.cli.progress import shown
    from collab_plugin.reports.check_extra import check_extra

    check_extra()
    from collab_plugin.formats.atomic_write import write_bytes
    from collab_plugin.reports.plots.hit_rate_plot import hit_rate_plot
    from collab_plugin.reports.plots.style import png

    curves = cp.hit_rates(model, trace, stats=stats, progress=shown())
    write_bytes(plot, png(lambda: hit_rate_plot(curves)))


def _render(console: Console, placed: cp.Placed, out: Path | None) -> None:
    placement = placed.placement
    experts = placement.experts
    assert experts is not None
    table = Table(
        "tier", "bytes", "GB/s", "every token reads", "whole tensors", "of expert reads", "single experts",
        "of expert reads", title=placement.artifact.name, title_justify="left",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for tier, content in zip(placement.tiers, placed.contents, strict=True):
        speed = "?" if tier.bandwidth is None else f"{tier.bandwidth / 1e9:.1f}{'' if tier.measured else ' (given)'}"
        table.add_row(
            tier.name,
            "-" if tier.bytes is None else f"{tier.bytes:,}",
            speed,
            f"{content.always:,}",
            f"{content.tensor_bytes:,}",
            f"{content.tensor_reads:.1%}",
            f"{content.expert_bytes:,}",
            f"{content.expert_reads:.1%}",
        )
    console.print(table)
    for what, found in (("whole tensors", placement.tensors.speed), ("single experts", experts.speed)):
        if found is not None:
            off = "" if found.error is None else f"; earlier forecasts here were off by {found.error:.0%}"
            console.print(f"{what}: {found.expected:.1f} tokens/s expected, roof {found.roof:.1f}{off}")
    _render_policies(console, placed)
    for engine, said in placed.honours.items():
        for sentence in said:
            console.print(f"{engine}: {sentence}", highlight=False, markup=False)
    for note in placement.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    if out is not None:
        console.print(f"{out}: policy {experts.policy.name}")


def _render_policies(console: Console, placed: cp.Placed) -> None:
    table = Table("policy", "moves experts", "experts in the first tier", "hits", "moved a token", "tokens/s")
    for column in table.columns[2:]:
        column.justify = "right"
    for outlook in placed.policies:
        row = outlook.row
        table.add_row(
            row.policy,
            "yes" if row.dynamic else "no",
            f"{row.room:,}",
            "-" if row.hits is None else f"{row.hits:.1%}",
            "-" if outlook.moved_bytes is None else f"{outlook.moved_bytes / 1e6:,.1f} MB",
            "-" if outlook.tokens_per_second is None else f"{outlook.tokens_per_second:.1f}",
        )
    table.title = f"hits by the {'trace' if placed.policies[0].row.seen_on == 'trace' else 'statistics'}"
    table.title_justify = "left"
    console.print(table)
