"""Options written NAME=VALUE, repeatable."""

from __future__ import annotations

from collections.abc import Callable

import click

Callback = Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, str]]


def pairs(example: str) -> Callback:
    """A click callback that makes a mapping of the values; ``example`` is shown where one is written otherwise."""

    def read(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        found = {}
        for value in values:
            name, equals, rest = value.partition("=")
            if not (name and equals and rest):
                raise click.BadParameter(f"write {parameter.metavar}, such as {example}")
            found[name] = rest
        return found

    return read
