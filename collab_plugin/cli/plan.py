"""`collab-plugin plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console
from rich.table import Table

from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.threads import threads_option
from collab_plugin.errors import CollabError

if TYPE_CHECKING:
    from collab_plugin.plans.plan import Plan
    from collab_plugin.plans.plan_diff import PlanDiff


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(value.partition("=")[::2] for value in values)
    if not all(pairs.values()):
        raise click.BadParameter("write ROLE=TYPE, such as attention=Q6_K")
    return pairs


def _used(context: click.Context, parameter: click.Parameter, value: str | None) -> int | Literal["auto"] | None:
    if value is None or value == "auto":
        return value  # type: ignore[return-value]  # "auto" is the literal
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise click.BadParameter("write auto, or a number of at least 1")
    return int(value)


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option(
    "--stats",
    "stats_path",
    type=click.Path(path_type=Path),
    help="Stats of `calibrate`, or any imatrix GGUF.",
)
@click.option("--budget", help="Size of the file: 103GB, 98.5GiB, 2.5bpw, or bytes. Never exceeded.")
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
    callback=_used,
    metavar="N|auto",
    help="Experts a token uses: by default scaled with the kept share; auto: that or the original number.",
)
@click.option("--criterion", default="freq-score", show_default=True, help="How experts are ranked (see `plugins`).")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Weight of frequency in freq-score.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random criterion.")
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
@click.option("--base", help="Smallest type for expert weights; never backs off when given.")
@click.option("--floor", "floors", multiple=True, callback=_pairs, metavar="ROLE=TYPE", help="Smallest type of a role.")
@click.option(
    "--ceiling",
    "ceilings",
    multiple=True,
    callback=_pairs,
    metavar="ROLE=TYPE",
    help="Largest type of a role.",
)
@click.option("--types", help="Only these types, separated by commas.")
@click.option("--for", "loader", metavar="NAME", help="Only types that this program loads (see `plugins`): ollama.")
@click.option("--allocator", default="knapsack", show_default=True, help="How bits are given out (see `plugins`).")
@click.option(
    "--order",
    type=click.Choice(["original", "importance"]),
    default="original",
    show_default=True,
    help="Order of the experts in the file.",
)
@click.option("--probe", is_flag=True, help="Measure what quantizing each part costs; kept in the stats file.")
@click.option(
    "--probe-minutes", type=click.FloatRange(0, min_open=True), default=10, show_default=True, help="Time for --probe."
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
    help="UTF-8 text for --probe and --confirm; may be repeated.",
)
@click.option(
    "--chunks",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Windows of 512 tokens of each text, for --probe and --confirm.",
)
@click.option(
    "--engine", default="llamacpp", show_default=True, help="Engine for --probe and --confirm (see `plugins`)."
)
@click.option("--keep-types", is_flag=True, help="Prune a quantized GGUF without requantizing anything.")
@click.option("--allow-few-tokens", is_flag=True, help="Prune although calibration saw too few tokens.")
@click.option("--diff", nargs=2, type=click.Path(path_type=Path), metavar="A B", help="Compare two plans instead.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Plan file to write.")
@threads_option
@json_option
def command(
    model: Path | None,
    stats_path: Path | None,
    budget: str | None,
    keep: str,
    layers: str,
    experts_used: int | Literal["auto"] | None,
    criterion: str,
    alpha: float,
    seed: int,
    groups: str | None,
    borrow: float,
    base: str | None,
    floors: dict[str, str],
    ceilings: dict[str, str],
    types: str | None,
    loader: str | None,
    allocator: str,
    order: str,
    probe: bool,
    probe_minutes: float,
    confirm: int,
    texts: tuple[Path, ...],
    chunks: int,
    engine: str,
    keep_types: bool,
    allow_few_tokens: bool,
    diff: tuple[Path, Path] | None,
    output: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    """Decide what is kept and the type of every tensor, within a byte budget.

    The plan is exact: the file that `compress` makes of it has the size it states. Fewer experts with
    more bits or more experts with fewer: what is predicted to change the model's output least is taken.
    --probe measures what the prediction rests on, --confirm what comes out.

    Example: collab-plugin plan DeepSeek-V3/ --stats stats.gguf --budget 103GB -o plan.json
    """
    if diff:
        from collab_plugin.plans.plan_diff import diff_plans
        from collab_plugin.plans.plan_file import read_plan

        result = diff_plans(read_plan(diff[0]), read_plan(diff[1]))
        emit(result, as_json, lambda console: _render_diff(console, result))
        return
    if model is None or output is None:
        raise click.UsageError("give MODEL and -o PLAN (or --diff A B)")
    from collab_plugin.checkpoint.topology import topology_of
    from collab_plugin.cli.progress import shown
    from collab_plugin.engines.engine import Windows
    from collab_plugin.planning.budget import parse_budget
    from collab_plugin.planning.decide import Measuring, decide
    from collab_plugin.planning.request import PlanRequest, StatsSource
    from collab_plugin.plans.plan_file import write_plan
    from collab_plugin.plugins.manager import first_kernels, pick, registry
    from collab_plugin.plugins.open_checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    topology = topology_of(checkpoint)
    if not output.parent.is_dir():
        raise CollabError(f"{output.parent} does not exist; make the folder first")
    source = StatsSource.read(stats_path) if stats_path else None
    request = PlanRequest(
        budget=parse_budget(budget, topology.total_parameters) if budget else None,
        criterion=pick(registry().criteria, criterion, "criterion"),
        allocator=pick(registry().allocators, allocator, "allocator"),
        keep=keep,
        layers=layers,  # type: ignore[arg-type]  # click.Choice gives one of the literals
        experts_used=experts_used,
        alpha=alpha,
        seed=seed,
        groups=groups,  # type: ignore[arg-type]  # click.Choice gives one of the literals
        borrow=borrow,
        base=base,
        floors=floors,
        ceilings=ceilings,
        types=_types(types, loader),
        order=order,  # type: ignore[arg-type]  # click.Choice gives one of the literals
        keep_types=keep_types,
        allow_few_tokens=allow_few_tokens,
        threads=threads,
    )
    measuring = None
    if probe or confirm:
        measuring = Measuring(
            engine=pick(registry().engines, engine, "engine"),
            windows=Windows(texts, chunks=chunks),
            folder=output.parent,
            probe_seconds=probe_minutes * 60 if probe else None,
            confirm=confirm,
        )
    plan = decide(checkpoint, topology, source, request, None if keep_types else first_kernels(), measuring, shown())
    if loader:
        _refuse_types(plan, loader)
    write_plan(output, plan)
    emit(plan, as_json, lambda console: render_plan(console, plan))


def _types(given: str | None, loader: str | None) -> tuple[str, ...]:
    """The types of --types that the program of --for loads; () for all."""
    from collab_plugin.engines.supported_types import allowed_types
    from collab_plugin.formats.ggml_types import type_info
    from collab_plugin.planning.request import DEFAULT_TYPES
    from collab_plugin.plugins.manager import pick, registry

    types = tuple(type_info(name.strip()).name for name in given.split(",")) if given else ()
    if loader is None:
        return types
    allowed = allowed_types(pick(registry().loaders, loader, "program"), types or DEFAULT_TYPES, bool(types))
    return () if allowed == DEFAULT_TYPES else allowed


def _refuse_types(plan: Plan, loader: str) -> None:
    """CollabError when a tensor that is only copied has a type that the program of --for does not load."""
    from collab_plugin.engines.supported_types import refuse_types
    from collab_plugin.plugins.manager import pick, registry

    types = {name: tensor.type for name, tensor in plan.tensors.items()}
    refuse_types(pick(registry().loaders, loader, "program"), types, "the plan")


def render_plan(console: Console, plan: Plan) -> None:
    """Print the plan's figures, types by role, back-off steps and notes."""
    from collab_plugin.formats.tensor_names import role_of

    p = plan.pruning
    of = f" of {plan.budget:,} ({plan.bytes / plan.budget:.2%})" if plan.budget else ""
    console.print(f"[bold]{plan.source.name}[/bold]: {plan.bytes:,} bytes{of}, {plan.bits_per_weight:.3f} bpw")
    lost = f", {p.mass_lost:.1%} of the routing mass dropped" if p.mass_lost else ""
    console.print(
        f"experts kept a layer: {p.span} ({p.criterion}{lost}); "
        f"experts a token: {plan.activation.used} (was {plan.activation.original})"
    )
    roles: dict[str, dict[str, int]] = {}
    for name, tensor in plan.tensors.items():
        kinds = roles.setdefault(role_of(name), {})
        kinds[tensor.type] = kinds.get(tensor.type, 0) + tensor.nbytes
    table = Table("role", "bytes", "share", "types")
    table.columns[1].justify = table.columns[2].justify = "right"
    for role, kinds in sorted(roles.items(), key=lambda item: -sum(item[1].values())):
        size = sum(kinds.values())
        parts = ", ".join(f"{k} {v / size:.0%}" for k, v in sorted(kinds.items(), key=lambda kv: -kv[1]))
        table.add_row(role, f"{size:,}", f"{size / plan.bytes:.1%}", parts)
    console.print(table)
    if plan.predicted_kld is not None:
        console.print(f"predicted KL divergence: {plan.predicted_kld:.4f} nats ({plan.sensitivity})")
    for point in plan.considered:
        if point.measured_kld is not None:
            console.print(
                f"measured: {point.measured_kld:.4f} nats with {point.expert_count} experts kept, "
                f"{point.experts_used} a token"
                f"{', taken' if point.chosen else ''}"
            )
    for step in plan.back_off:
        console.print(f"backed off: {step.step} (smallest file then {step.smallest_bytes:,} bytes)")
    for note in plan.notes:
        console.print(f"note: {note}")


def _render_diff(console: Console, diff: PlanDiff) -> None:
    table = Table("what", "A", "B")
    for column in table.columns:
        column.overflow = "fold"
    for name, pair in {**diff.values, **diff.types}.items():
        table.add_row(name, str(pair.a), str(pair.b))
    for title, kept in (("kept only in A", diff.kept_only_in_a), ("kept only in B", diff.kept_only_in_b)):
        for layer, ids in kept.items():
            table.add_row(f"{title}, layer {layer}", *(map(str, (ids, "")) if "A" in title else map(str, ("", ids))))
    console.print(table if table.row_count else "the plans make the same file")
