"""`collab-plugin plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from collab_plugin.cli.output import check_folder_of, emit, json_option
from collab_plugin.cli.threads import threads_option

if TYPE_CHECKING:
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
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Plan file to write.")
@threads_option
@json_option
def command(
    model: Path | None,
    stats: Path | None,
    budget: str | None,
    keep: str,
    layers: Literal["same", "varied"],
    experts_used: int | Literal["auto"] | None,
    criterion: str,
    alpha: float,
    seed: int,
    groups: Literal["balanced", "disband"] | None,
    borrow: float,
    base: str | None,
    floors: dict[str, str],
    ceilings: dict[str, str],
    types: str | None,
    loader: str | None,
    allocator: str,
    order: Literal["original", "importance"],
    probe: bool,
    probe_minutes: float,
    confirm: int,
    texts: tuple[Path, ...],
    chunks: int,
    engine: str,
    keep_types: bool,
    allow_few_tokens: bool,
    diff: tuple[Path, Path] | None,
    out: Path | None,
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

        result = diff_plans(cp.read_plan(diff[0]), cp.read_plan(diff[1]))
        emit(result, as_json, lambda console: _render_diff(console, result))
        return
    if model is None or out is None:
        raise click.UsageError("give MODEL and -o PLAN (or --diff A B)")
    from collab_plugin.cli.progress import shown

    check_folder_of(out)
    plan = cp.plan(
        model,
        stats=stats,
        budget=budget,
        keep=keep,
        layers=layers,
        experts_used=experts_used,
        criterion=criterion,
        alpha=alpha,
        seed=seed,
        groups=groups,
        borrow=borrow,
        base=base,
        floors=floors,
        ceilings=ceilings,
        types=types or (),
        loader=loader,
        allocator=allocator,
        order=order,
        keep_types=keep_types,
        allow_few_tokens=allow_few_tokens,
        probe_minutes=probe_minutes if probe else None,
        confirm=confirm,
        texts=texts,
        chunks=chunks,
        engine=engine,
        scratch=out.parent,
        threads=threads,
        progress=shown(),
    )
    cp.write_plan(out, plan)
    emit(plan, as_json, lambda console: render_plan(console, plan))


def render_plan(console: Console, plan: cp.Plan) -> None:
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
