"""`collab-plugin plugins`: what is installed and what it adds."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from collab_plugin.cli.output import emit, json_option
from collab_plugin.plugins.manager import KINDS, registry

WORDS = [kind.replace("_", " ") for kind in KINDS]
HELP = f"""List what is installed, and which plugin brought it: {", ".join(WORDS[:-1])} and {WORDS[-1]}.

Example: collab-plugin plugins --json
"""


@click.command(help=HELP)
@json_option
def command(as_json: bool) -> None:
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
