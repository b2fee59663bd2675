"""Options of commands that reckon with how a model will be run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from collab_plugin.placement.run_setup import KvType, RunSetup

_Function = Callable[..., Any]


def setup_options(function: _Function) -> _Function:
    """--context, --sequences, --kv-type and --reserve, in this order; `setup_of` makes a RunSetup of them."""
    options = (
        click.option(
            "--context",
            type=click.IntRange(1, 2**24),
            default=RunSetup.context,
            show_default=True,
            help="Tokens of context that each sequence runs with, for the KV cache.",
        ),
        click.option(
            "--sequences",
            type=click.IntRange(1, 2**16),
            default=RunSetup.sequences,
            show_default=True,
            help="Sequences that run at once.",
        ),
        click.option(
            "--kv-type",
            type=click.Choice(get_args(KvType)),
            default=RunSetup.kv_type,
            show_default=True,
            help="Type of the KV cache.",
        ),
        click.option("--reserve", default="1GiB", show_default=True, help="Memory to leave free: 1GiB, 4GB, or bytes."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def setup_of(context: int, sequences: int, kv_type: KvType, reserve: str) -> RunSetup:
    """What the options say. CollabError where the reserve is no size."""
    from collab_plugin.planning.budget import parse_size

    return RunSetup(context, sequences, kv_type, 0 if reserve == "0" else parse_size(reserve, "reserve"))
