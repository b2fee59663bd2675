"""`~` in arguments that a shell left as they were: in quotes, or behind `=`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class HomePath(click.Path):
    """A path whose first `~` is the user's home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click: ``value`` with `~` expanded."""
        if isinstance(value, str) and value.startswith("~"):
            try:
                value = str(Path(value).expanduser())
            except RuntimeError:
                self.fail(f"{value!r}: there is no such user", param, ctx)
        return super().convert(value, param, ctx)


def expand_home(command: click.Command) -> None:
    """Make every path of ``command`` a `HomePath`."""
    for parameter in command.params:
        if type(parameter.type) is click.Path:
            expanding = HomePath()
            expanding.__dict__.update(parameter.type.__dict__)
            parameter.type = expanding
