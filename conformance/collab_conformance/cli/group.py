"""`verify` runs by itself, with artifacts as arguments, and has commands below it."""

from __future__ import annotations

from typing import Any

import click

from collab_plugin.cli.option_names import record_command


class ArtifactsOrCommand(click.Group):
    """A group whose first word is one of its commands, or else an argument of its own.

    click alone takes the first word for a command as soon as there are any. A file that has a command's
    name is written with its folder: ./pack.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        command = self.commands.get(args[0]) if args else None
        if command is None:
            return super().make_context(info_name, args, parent, allow_interspersed_args=True, **extra)
        if parent is not None:
            record_command(parent, command)
        # A bare command above it: the usage line would show the arguments of this one before its name.
        above = click.Context(click.Command(self.name), info_name=info_name, parent=parent)
        return command.make_context(args[0], args[1:], parent=above, **extra)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return click.Command.collect_usage_pieces(self, ctx)
