"""Messages name parameters as the Python interface does, `like_this`; the command line shows the option instead."""

from __future__ import annotations

import re

import click

from collab_plugin.cli.home_paths import expand_home

_COMMAND = "collab-plugin: command"
_NAME = re.compile(r"`([a-z][a-z0-9_]*)`")


class RecordsCommand(click.Group):
    """A group that notes which command runs, so that a message can show the names of its options."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = super().resolve_command(ctx, args)
        if found[1] is not None:
            expand_home(found[1])
        record_command(ctx, found[1])
        return found


def record_command(context: click.Context, command: click.Command | None) -> None:
    """Note that ``command`` runs: one mapping serves all contexts of a run, so that the innermost command stays."""
    context.meta[_COMMAND] = command


def command_of(context: click.Context) -> click.Command | None:
    """The command that the groups of this run came to, None before there is one."""
    found: click.Command | None = context.meta.get(_COMMAND)
    return found


def with_options(message: str, command: click.Command | None) -> str:
    """``message`` with each `name` in backticks that is a parameter of ``command`` as its option or argument."""
    names = {} if command is None else {p.name: _shown(p) for p in command.params}
    return _NAME.sub(lambda found: names.get(found[1], found[0]), message)


def _shown(parameter: click.Parameter) -> str:
    """The longest spelling of an option, an argument's placeholder."""
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name
    return max(parameter.opts, key=len)
