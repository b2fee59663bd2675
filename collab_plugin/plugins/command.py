"""Commands that plugins add to the command line: named now, imported when used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PluginCommand:
    """One command, or a group of them.

    ``name`` is what is typed: "ollama", or "ollama create" for a command of that group (two words at
    most). ``target`` is "package.module:attribute" of a `click.Command`, imported on first use; None
    makes a group, whose help is ``summary``. The group "export" is built in: add "export NAME" to it.
    """

    name: str
    summary: str
    target: str | None = None
