"""`collab-plugin plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast, get_args

import click

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.pairs import pairs
from collab_plugin.cli.setup_options import setup_of, setup_options
from collab_plugin.cli.threads import threads_option
from collab_plugin.placement.run_setup import KvType

_ROLE_TYPE = pairs("attention=Q6_K")


def used_callback(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | Literal["auto"] | None:
    """``--experts-used`` as a number, "auto" or None."""
    if value is None or value == "auto":
        return value  # type: ignore[return-value]  # "auto" is the literal
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise click.BadParameter("write auto, or a number of at least 1")
    return int(value)


def _kv_types(value: str | None) -> tuple[KvType, ...]:
    """``--kv-types`` as their names."""
    if value is None:
        return ()
    names, known = tuple(name.strip().lower() for name in value.split(",")), get_args(KvType)
    if wrong := [name for name in names if name not in known]:
        raise click.BadParameter(f"{wrong[0]!r} is none of {', '.join(known)}", param_hint="--kv-types")
    return cast(tuple[KvType, ...], names)


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--stats",
    type=click.Path(path_type=Path),
    help="Stats of `calibrate`, or any imatrix GGUF.",
)
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    help="What `probe` measured on this model; by default what was learnt on small ones.",
)
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    help="What `sample` wrote of this model: kept experts are fitted to do the work of dropped ones too.",
)
@click.option("--budget", help="Size of the file: 103GB, 98.5GiB, 2.5bpw, or bytes. Never exceeded.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory of the machine, 128GB, in place of --budget: the file gets what running leaves of it.",
)
@click.option("--machine", metavar="NAME", help="A known machine in place of --memory (see `fit`): strix-halo-128.")
@setup_options
@click.option(
    "--kv-types",
    metavar="A,B",
    help="Weigh these types of the KV cache with --memory or --machine: the one that leaves the best plan is taken.",
)
@click.option(
    "--keep", default="auto", show_default=True, help="Experts a layer: auto, a share (0.75, 75%) or a count."
)
@click.option(
    "--layers",
    type=click.Choice(["same", "varied"]),
    default="same",
    show_default=True,
    help="As many experts in every layer, or each layer its own number with that mean, which only vLLM runs.",
)
@click.option(
    "--experts-used",
    callback=used_callback,
    metavar="N|auto",
    help="Experts a token uses: by default scaled with the kept share; auto: that or the original number.",
)
@click.option("--criterion", default="auto", show_default=True, help="How experts are ranked (see `plugins`).")
@click.option(
    "--criterion-option",
    "criterion_options",
    multiple=True,
    callback=pairs("alpha=0.2"),
    metavar="NAME=VALUE",
    help="Option of the criterion (see `plugins`): alpha of freq-score, seed of random.",
)
@click.option(
    "--groups",
    type=click.Choice(["balanced", "disband"]),
    help="Routers with expert groups: keep as many in each group (default), or give up the groups.",
)
@click.option(
    "--borrow",
    type=click.FloatRange(0),
    default=32,
    show_default=True,
    metavar="TOKENS",
    help="Tokens of the layer's mean importance that each expert's own is mixed with; 0 as llama-quantize.",
)
@click.option("--base", help="Smallest type for expert weights.")
@click.option(
    "--floor", "floors", multiple=True, callback=_ROLE_TYPE, metavar="ROLE=TYPE", help="Smallest type of a role."
)
@click.option(
    "--ceiling",
    "ceilings",
    multiple=True,
    callback=_ROLE_TYPE,
    metavar="ROLE=TYPE",
    help="Largest type of a role.",
)
@click.option("--types", help="Only these types, separated by commas.")
@click.option("--for", "loader", metavar="NAME", help="Only types that this program loads (see `plugins`): ollama.")
@click.option("--allocator", default="knapsack", show_default=True, help="How bits are given out (see `plugins`).")
@click.option(
    "--allocator-option",
    "allocator_options",
    multiple=True,
    callback=pairs("seconds=60"),
    metavar="NAME=VALUE",
    help="Option of the allocator (see `plugins`): seconds of knapsack.",
)
@click.option(
    "--order",
    type=click.Choice(["original", "importance"]),
    default="original",
    show_default=True,
    help="Order of the experts in the file.",
)
@click.option(
    "--confirm",
    type=click.IntRange(0, 32),
    default=0,
    metavar="N",
    help="Build and measure the N best candidates; the plan is the winner.",
)
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Text, .jsonl or .parquet for --confirm; may be repeated.",
)
@click.option(
    "--ctx",
    type=click.IntRange(16, 2**20),
    show_default="of the stats",
    help="Tokens a window, for --confirm.",
)
@click.option(
    "--chunks",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="At most so many windows of each text, for --confirm.",
)
@click.option("--engine", default="llamacpp", show_default=True, help="Engine for --confirm (see `plugins`).")
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Ray cluster that measures the candidates of --confirm: ray://HEAD:10001, or auto on a node of it.",
)
@click.option("--keep-types", is_flag=True, help="Prune a quantized GGUF without requantizing anything.")
@click.option("--allow-few-tokens", is_flag=True, help="Prune although calibration saw too few tokens.")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Plan file to write.")
@threads_option
@json_option
def command(
    model: Model,
    stats: Path | None,
    sensitivity: Path | None,
    samples: Path | None,
    budget: str | None,
    memory: str | None,
    machine: str | None,
    context: int,
    sequences: int,
    kv_type: KvType,
    kv_types: str | None,
    reserve: str,
    keep: str,
    layers: Literal["same", "varied"],
    experts_used: int | Literal["auto"] | None,
    criterion: str,
    criterion_options: dict[str, str],
    groups: Literal["balanced", "disband"] | None,
    borrow: float,
    base: str | None,
    floors: dict[str, str],
    ceilings: dict[str, str],
    types: str | None,
    loader: str | None,
    allocator: str,
    allocator_options: dict[str, str],
    order: Literal["original", "importance"],
    confirm: int,
    texts: tuple[Path, ...],
    ctx: int | None,
    chunks: int,
    engine: str,
    cluster: str | None,
    keep_types: bool,
    allow_few_tokens: bool,
    out: Path,
    threads: int,
    as_json: bool,
) -> None:
    """Decide what is kept and the type of every tensor, within a byte budget.

    The plan is exact: the file that `compress` makes of it has the size it states. Fewer experts with
    more bits or more experts with fewer: what is predicted to change the model's output least is taken.
    `probe` measures what the prediction rests on, --confirm what comes out.

    Example: collab-plugin plan DeepSeek-V3/ --stats stats.gguf --budget 103GB -o plan.json
    """
    from collab_plugin.cli.plan_table import render_plan
    from collab_plugin.cli.progress import shown
    from collab_plugin.formats.output_path import check_output

    check_output(out, (model, stats, sensitivity, samples, *texts))
    plan = cp.plan(
        model,
        stats=stats,
        sensitivity=sensitivity,
        samples=samples,
        budget=budget,
        memory=memory,
        machine=machine,
        setup=setup_of(context, sequences, kv_type, reserve),
        kv_types=_kv_types(kv_types),
        keep=keep,
        layers=layers,
        experts_used=experts_used,
        criterion=criterion,
        criterion_options=criterion_options,
        groups=groups,
        borrow=borrow,
        base=base,
        floors=floors,
        ceilings=ceilings,
        types=types or (),
        loader=loader,
        allocator=allocator,
        allocator_options=allocator_options,
        order=order,
        keep_types=keep_types,
        allow_few_tokens=allow_few_tokens,
        confirm=confirm,
        texts=texts,
        ctx=ctx,
        chunks=chunks,
        engine=engine,
        cluster=cluster,
        threads=threads,
        progress=shown(),
    )
    cp.write_plan(out, plan)
    emit(plan, as_json, lambda console: render_plan(console, plan))
