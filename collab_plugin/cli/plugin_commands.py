"""Commands of plugins: found by name, imported when they are used."""

from __future__ import annotations

import importlib

import click

from collab_plugin.cli.option_names import RecordsCommand
from collab_plugin.errors import CollabError
from collab_plugin.plugins.command import PluginCommand
from collab_plugin.plugins.manager import plugin_commands


def names_below(group: str) -> list[str]:
    """The names one word below ``group`` ("": the top), in order of registration, empty groups left out."""
    prefix = f"{group} " if group else ""
    words = [name.removeprefix(prefix) for name in plugin_commands() if name.startswith(prefix)]
    return [word for word in words if " " not in word and not _is_empty(prefix + word)]


def _is_empty(name: str) -> bool:
    return plugin_commands()[name].target is None and not any(
        other.startswith(f"{name} ") for other in plugin_commands()
    )


class PluginGroup(RecordsCommand, click.Group):
    """A group of plugins' commands, all of whose names begin with ``path``."""

    def __init__(self, path: str, summary: str) -> None:
        super().__init__(path.split()[-1], help=summary)
        self.path = path

    def list_commands(self, ctx: click.Context) -> list[str]:
        return names_below(self.path)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return find_command(f"{self.path} {cmd_name}")


def find_command(name: str) -> click.Command | None:
    """Return the command or group called ``name``, None when there is none."""
    entry = plugin_commands().get(name)
    if entry is None or _is_empty(name):
        return None
    return PluginGroup(name, entry.summary) if entry.target is None else _load(entry, entry.target)


def _load(entry: PluginCommand, target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # someone else's code: whatever it raises
        return _broken(entry, f"{type(error).__name__}: {error}")
    return found if isinstance(found, click.Command) else _broken(entry, f"{target} is no click command")


def _broken(entry: PluginCommand, why: str) -> click.Command:
    """A command that says why it is none: help goes on listing the others."""
    message = (
        f"the command {entry.name!r} of a plugin cannot be loaded ({why}): mend or uninstall the plugin, "
        "or leave it out with COLLAB_LOAD_PLUGINS"
    )

    def fail() -> None:
        raise CollabError(message)

    return click.Command(entry.name.split()[-1], callback=fail, help=f"Cannot be loaded: {why}", add_help_option=False)
