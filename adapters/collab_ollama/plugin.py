"""What the adapter registers. Importing this must stay cheap: it is done for every `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from collab_plugin import hookimpl

if TYPE_CHECKING:
    from collab_plugin import Engine, Loader, PluginCommand, TargetProvider


@hookimpl
def collab_register_engines(register: Callable[[Engine], None]) -> None:
    from collab_ollama.ollama_engine import OllamaEngine

    register(OllamaEngine())


@hookimpl
def collab_register_loaders(register: Callable[[Loader], None]) -> None:
    from collab_ollama.model.ollama_types import OLLAMA

    register(OLLAMA)


@hookimpl
def collab_register_targets(register: Callable[[TargetProvider], None]) -> None:
    from collab_ollama.targets.ollama_targets import OllamaTargets

    register(OllamaTargets())


@hookimpl
def collab_register_commands(register: Callable[[PluginCommand], None]) -> None:
    from collab_plugin import PluginCommand

    register(
        PluginCommand("export ollama", "Write a Modelfile for `ollama create`.", "collab_ollama.cli.export:command")
    )
    register(PluginCommand("ollama", "Create, serve and compare models in Ollama."))
    for name, summary in (
        ("create", "Create a model over HTTP, without a second copy on the disk."),
        ("serve", "Start an Ollama server with a placement of the experts."),
        ("evaluate", "Compare two models of a server by their log-probabilities."),
    ):
        register(PluginCommand(f"ollama {name}", summary, f"collab_ollama.cli.{name}:command"))
