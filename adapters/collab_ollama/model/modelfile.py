"""Modelfiles: what a model of Ollama is made of, as the text that `ollama create -f` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from collab_ollama.model.modelfile_grammar import plain, quoted
from collab_ollama.model.parameters import Value, check_parameters, spelled
from collab_plugin.errors import CollabError

# golang.org/x/mod/semver, which also takes 1 and 1.2.
_VERSION = re.compile(r"v?(0|[1-9]\d*)(\.(0|[1-9]\d*)){0,2}", re.ASCII)


@dataclass(frozen=True)
class Modelfile:
    """``files``: the GGUF, or every shard of a split one, in order; ``parameters``: name -> value, ``stop`` a
    tuple. ``template`` is Go's text/template. ``requires``: the oldest Ollama, such as 0.30.0 (only
    displayed by Ollama)."""

    files: tuple[Path, ...]
    parameters: Mapping[str, Value] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    licenses: tuple[str, ...] = ()
    requires: str | None = None


def check(modelfile: Modelfile) -> None:
    """CollabError for what Ollama would refuse or misread, whichever way the model is created."""
    for path in modelfile.files:
        if not path.is_file():
            # Ollama would take the path for the name of a model and try to download it.
            raise CollabError(f"{path} does not exist or is no file")
    if not modelfile.files:
        raise CollabError("a model needs a GGUF file")
    check_parameters(modelfile.parameters)
    if modelfile.requires is not None and not _VERSION.fullmatch(modelfile.requires):
        raise CollabError(f"`requires` {modelfile.requires!r} is no version such as 0.30.0")


def render(modelfile: Modelfile) -> str:
    """The text of the Modelfile; CollabError for what its grammar cannot say (modelfile_grammar.py)."""
    check(modelfile)
    lines = [f"FROM {plain(str(path.resolve()), f'the path {path}')}" for path in modelfile.files]
    for name, value in modelfile.parameters.items():
        if isinstance(value, tuple):
            lines += [f"PARAMETER {name} {quoted(text, name)}" for text in value]
        else:
            lines.append(f"PARAMETER {name} {spelled(value)}")
    if modelfile.template is not None:
        lines.append(f"TEMPLATE {quoted(modelfile.template, 'the template')}")
    if modelfile.system is not None:
        lines.append(f"SYSTEM {quoted(modelfile.system, 'the system prompt')}")
    lines += [f"LICENSE {quoted(text, 'the license')}" for text in modelfile.licenses]
    if modelfile.requires is not None:
        lines.append(f"REQUIRES {modelfile.requires}")
    return "\n".join(lines) + "\n"
