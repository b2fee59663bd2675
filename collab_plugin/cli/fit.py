"""`collab-plugin fit`."""

from __future__ import annotations

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
    "--machine",
    metavar="NAME",
    help="A known machine in place of this one: strix-halo-128, dgx-spark, mac-studio-64, -128, -256, -512, "
    "gpu24-ram64, gpu24-ram128.",
)
@click.option("--memory", metavar="SIZE", help="Memory in place of what this machine has: 128GB, 96GiB, or bytes.")
@setup_options
@threads_option
@json_option
def command(
    model: Model,
    machine: str | None,
    memory: str | None,
    context: int,
    sequences: int,
    kv_type: KvType,
    reserve: str,
    threads: int,
    as_json: bool,
) -> None:
    """Tell whether a model runs on a machine, with how much context, and how fast at most.

    The speed is a roof: every active weight and cached value read once a token at full bandwidth. That of this
    machine's processor is measured, that of a named machine is its maker's.

    Example: collab-plugin fit out.gguf --machine strix-halo-128 --context 32768
    """
    setup = setup_of(context, sequences, kv_type, reserve)
    found = cp.fit(model, machine=machine, memory=memory, setup=setup, threads=threads)
    result = {**plain(found), "fits": found.fits}
    emit(result, as_json, lambda console: _render(console, found))


def _render(console: Console, found: cp.Fit) -> None:
    memory, setup = found.memory, found.memory.setup
    table = Table("what", "bytes", "how", title=f"{found.machine.title}", title_justify="left")
    table.columns[1].justify = "right"
    weights = sum(part.bytes or 0 for part in memory.weights)
    table.add_row("weights", f"{weights:,}", "of the file")
    for part in memory.runtime:
        table.add_row(
            part.name, "unknown" if part.bytes is None else f"{part.bytes:,}", f"{part.certainty}: {part.how}"
        )
    table.add_section()
    table.add_row("all" if memory.complete else "all that is known", f"{memory.total:,}", "")
    table.add_row("available", f"{found.machine.available:,}", ", ".join(_tier(t) for t in found.machine.tiers))
    console.print(table)
    verdict = f"fits, {found.spare:,} bytes to spare" if found.fits else f"does not fit: {-found.spare:,} bytes missing"
    sequences = f"{setup.sequences} sequences of " if setup.sequences > 1 else ""
    console.print(f"With {sequences}{setup.context:,} tokens of context it {verdict}.")
    if found.largest_context is not None:
        console.print(f"Largest context that fits: {found.largest_context:,} tokens.")
    empty, full = found.tokens_per_second
    kind = "measured" if found.machine.measured else "the maker's"
    console.print(
        f"At most {empty:.1f} tokens/s, {full:.1f} with a full cache: {found.active_bytes:,} active bytes a token, "
        f"bandwidth {kind}."
    )
    for use in found.tiers if len(found.tiers) > 1 else ():
        console.print(f"  {use.name}: {use.bytes:,} bytes, of which a token reads {use.read:,}")
    if found.machine.note:
        console.print(f"note: {found.machine.note}")


def _tier(tier: cp.MachineMemory) -> str:
    share = "" if tier.usable == 1 else f"{tier.usable:.0%} of "
    return f"{tier.name}: {share}{tier.bytes:,} at {tier.bandwidth / 1e9:.0f} GB/s"
