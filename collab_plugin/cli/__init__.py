"""The command line: one file a command, loaded when it is used."""

from collab_plugin.cli.main import main

__all__ = ["main"]
