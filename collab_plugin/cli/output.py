"""What commands print: a table for people on stdout, or JSON alone on stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console

from collab_plugin.cli.option_names import with_options

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, alone on stdout.")


def emit(result: Any, as_json: bool, render: Callable[[Console], None]) -> None:
    """Print ``result`` (a dataclass or mapping) as JSON, or call ``render`` with a console on stdout."""
    if as_json:
        click.echo(json.dumps(plain(result), indent=2))
    else:
        # In a pipe or a log rich would cut tables at 80 columns.
        render(Console() if sys.stdout.isatty() else Console(width=140))


def warn(sentence: str) -> None:
    """Print a warning on stderr; `parameters` in it are named as the running command's options."""
    click.echo(f"warning: {with_options(sentence, click.get_current_context().command)}", err=True)


def plain(value: Any) -> Any:
    """Turn dataclasses, mappings, tuples and numpy scalars into what json can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    # numpy's scalars and arrays; importing it for their types alone would slow every --help.
    return value.tolist() if hasattr(value, "tolist") else value
