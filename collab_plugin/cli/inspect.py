"""`collab-plugin inspect`."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option, plain


@click.command()
@click.argument("model", type=MODEL)
@json_option
def command(model: Model, as_json: bool) -> None:
    """Show a model's layers, experts, router and bytes by role.

    MODEL is a GGUF file (any shard of a split one), a Hugging Face folder, or an address such as
    hf://organization/name, of which the headers alone are read.

    Example: collab-plugin inspect DeepSeek-V3/
    """
    checkpoint = cp.open_checkpoint(model)
    topology = cp.inspect(checkpoint)
    result = {**plain(topology), "format": checkpoint.format, "notes": list(checkpoint.notes)}
    emit(result, as_json, lambda console: _render(console, checkpoint, topology))


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
