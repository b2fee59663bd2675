"""The `collab-plugin` group: finds commands by name, turns CollabError into one line and exit code 2."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Sequence

import click

from collab_plugin import __version__
from collab_plugin.cli.option_names import RecordsCommand, command_of, with_options
from collab_plugin.errors import CollabError

# Name -> module of collab_plugin.cli whose `command` it is; imported only when used, so that
# `--help` is instant.
COMMANDS = {
    "inspect": "inspect",
    "calibrate": "calibrate",
    "probe": "probe",
    "sample": "sample",
    "plan": "plan",
    "diff": "diff",
    "report": "report",
    "compress": "compress",
    "evaluate": "evaluate",
    "fit": "fit",
    "place": "place",
    "run": "run",
    "demo": "demo",
    "plugins": "plugins",
}


_ARGUMENTS = "collab-plugin arguments"


class LazyGroup(RecordsCommand, click.Group):
    """A group whose commands are modules, imported on first use; plugins' commands come after ours."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from collab_plugin.cli.plugin_commands import names_below

        try:
            names = names_below("")
        except CollabError as error:
            # A broken plugin may not hide the help.
            click.echo(f"error: {error}", err=True)
            return list(COMMANDS)
        for name in set(names) & set(COMMANDS):
            click.echo(f"error: a plugin's command {name!r} has a built-in one's name and is left out", err=True)
        return [*COMMANDS, *(name for name in names if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            from collab_plugin.cli.plugin_commands import find_command

            return find_command(cmd_name)
        module = importlib.import_module(f"collab_plugin.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(args)  # click takes them off the list
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            _check_utf8(ctx.meta[_ARGUMENTS])
            return super().invoke(ctx)
        except CollabError as error:
            message = with_options(str(error), command_of(ctx))
        except KeyboardInterrupt:
            message = "interrupted; no output was left half-made, run the same command to go on"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"no space left on the disk ({error.filename or 'output'}); free some and run again"
        line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()  # half a surrogate pair, say
        click.echo(f"error: {line}", err=True)
        raise click.exceptions.Exit(2)


def _check_utf8(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise CollabError(f"{os.fsencode(argument)!r} is not UTF-8; give the file another name") from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="collab-plugin")
def main() -> None:
    """Compress a Mixture-of-Experts model under a byte budget and run it.

    The usual way: inspect, calibrate, plan, compress, evaluate, run. `collab-plugin COMMAND --help`
    shows an example of each.
    """
