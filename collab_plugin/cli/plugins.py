"""`collab-plugin plugins`: what is installed and what it adds."""

from __future__ import annotations

from typing import Any

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
    rows: list[dict[str, Any]] = [
        {"kind": kind.replace("_", "-"), "name": name, "plugin": plugin, "options": _options(kind, name)}
        for (kind, name), plugin in registry().providers.items()
    ]

    def render(console: Console) -> None:
        table = Table("kind", "name", "plugin", "options")
        for row in rows:
            shown = (f"{name}={about['default']}: {about['help']}" for name, about in row["options"].items())
            table.add_row(row["kind"], row["name"], row["plugin"], "\n".join(shown))
        console.print(table)

    emit(rows, as_json, render)


def _options(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """What a criterion or an allocator can be told: by name, the default and what it means."""
    declared = getattr(getattr(registry(), kind)[name], "options", ()) if kind in ("criteria", "allocators") else ()
    return {option.name: {"default": option.default, "help": option.help} for option in declared}
