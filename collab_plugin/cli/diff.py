"""`collab-plugin diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from collab_plugin.cli.output import emit, json_option

if TYPE_CHECKING:
    from collab_plugin.plans.plan_diff import PlanDiff


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@json_option
def command(a: Path, b: Path, as_json: bool) -> None:
    """Compare two plans: figures, types, and the experts that only one of them keeps.

    Example: collab-plugin diff plan-a.json plan-b.json
    """
    from collab_plugin.plans.plan_diff import diff_plans

    result = diff_plans(cp.read_plan(a), cp.read_plan(b))
    emit(result, as_json, lambda console: _render(console, result))


def _render(console: Console, diff: PlanDiff) -> None:
    table = Table("what", "A", "B")
    for column in table.columns:
        column.overflow = "fold"
    for name, pair in {**diff.values, **diff.types}.items():
        table.add_row(name, str(pair.a), str(pair.b))
    for layer, ids in diff.kept_only_in_a.items():
        table.add_row(f"kept only in A, layer {layer}", str(ids), "")
    for layer, ids in diff.kept_only_in_b.items():
        table.add_row(f"kept only in B, layer {layer}", "", str(ids))
    console.print(table if table.row_count else "the plans make the same file")
