"""`collab-plugin plugins`: what is installed and what it adds."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from collab_plugin.cli.output import emit, json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List what plugins add: formats, criteria, allocators, placement policies, kernels, engines, loaders, commands.

    Example: collab-plugin plugins --json
    """
    from collab_plugin.plugins.manager import registry

    rows = [
        {"kind": kind.replace("_", "-"), "name": name, "plugin": plugin}
        for (kind, name), plugin in registry().providers.items()
    ]

    def render(console: Console) -> None:
        table = Table("kind", "name", "plugin")
        for row in rows:
            table.add_row(row["kind"], row["name"], row["plugin"])
        console.print(table)

    emit(rows, as_json, render)
