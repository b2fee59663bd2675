"""What the conformance suite registers. Importing this must stay cheap: it is done for every `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from collab_plugin import hookimpl

if TYPE_CHECKING:
    from collab_plugin import PluginCommand


@hookimpl
def collab_register_commands(register: Callable[[PluginCommand], None]) -> None:
    from collab_plugin import PluginCommand

    register(
        PluginCommand(
            "verify",
            "Hold a compressed model on every engine and device to a reference.",
            "collab_conformance.cli.verify:command",
        )
    )
