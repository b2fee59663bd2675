"""The --threads option, the same for every command that works in parallel."""

from __future__ import annotations

import click

from collab_plugin.api.cores import cores

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=cores(),
    show_default="all cores",
    help="Threads to use; results do not depend on it.",
)
