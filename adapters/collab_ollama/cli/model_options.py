"""Options that the commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collab_ollama.server.version import OLDEST
from collab_plugin.errors import CollabError

if TYPE_CHECKING:
    from collab_ollama.model.gguf_for_ollama import OllamaArtifact
    from collab_ollama.model.modelfile import Modelfile

host_option = click.option("--host", show_default="OLLAMA_HOST or 127.0.0.1:11434", help="The server, HOST:PORT.")


@dataclass(frozen=True)
class ModelOptions:
    """What both ways of creating a model ask for; see the options below."""

    num_ctx: int | None
    mmap: bool | None
    generation_config: Path | None
    parameters: tuple[str, ...]
    template: Path | None
    system: str | None
    licenses: tuple[Path, ...]
    requires: str | None


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `ModelOptions`, which arrive as keyword arguments of the same names."""
    path = click.Path(path_type=Path)
    options = (
        click.option(
            "--num-ctx",
            type=click.IntRange(1),
            show_default="8192, at most the model's",
            help="Context in tokens; its memory is taken when the model is loaded.",
        ),
        click.option(
            "--mmap/--no-mmap",
            default=None,
            show_default="mapped when the file is larger than free memory",
            help="Map the file instead of reading it whole.",
        ),
        click.option(
            "--generation-config",
            type=path,
            help="generation_config.json, or its folder: sampling defaults and stop tokens.",
        ),
        click.option(
            "--parameter",
            "parameters",
            multiple=True,
            metavar="NAME=VALUE",
            help="Any other parameter of Ollama, such as temperature=0.6; stop may be repeated.",
        ),
        click.option(
            "--template", type=path, help="File with a Go template, used instead of the GGUF's chat template."
        ),
        click.option("--system", help="System prompt."),
        click.option("--license", "licenses", multiple=True, type=path, help="File with the license's text."),
        click.option("--requires", default=OLDEST, show_default=True, help="Oldest Ollama, shown by `ollama show`."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def modelfile_of(artifact: OllamaArtifact, options: ModelOptions) -> tuple[OllamaArtifact, Modelfile]:
    """The Modelfile of ``artifact`` with these options, and the artifact with what its notes say of it more.

    Raises CollabError for what cannot be.
    """
    from collab_ollama.model.default_settings import PLAIN_TEMPLATE, default_parameters, read_generation_config
    from collab_ollama.model.modelfile import Modelfile

    generation = read_generation_config(options.generation_config) if options.generation_config else {}
    defaults = default_parameters(artifact, options.num_ctx, options.mmap, generation)
    template = _read(options.template) if options.template else None
    if template is None and artifact.chat_template is None:
        template = PLAIN_TEMPLATE
    modelfile = Modelfile(
        files=tuple(path.resolve() for path in artifact.files),
        parameters=defaults.parameters | _given(options.parameters),
        template=template,
        system=options.system,
        licenses=tuple(_read(path) for path in options.licenses),
        requires=options.requires,
    )
    return replace(artifact, notes=(*artifact.notes, *defaults.notes)), modelfile


def _given(pairs: tuple[str, ...]) -> dict[str, Any]:
    from collab_ollama.model.parameters import parameter

    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise CollabError(f"--parameter {pair!r}: write NAME=VALUE, such as temperature=0.6")
        value = parameter(name, text)
        found[name] = (*found.get(name, ()), *value) if isinstance(value, tuple) else value
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CollabError(f"{path} is not UTF-8") from None
