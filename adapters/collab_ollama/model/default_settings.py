"""What a model's Modelfile says by default: context, memory mapping, sampling, stop tokens, template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collab_ollama.model.gguf_for_ollama import OllamaArtifact
from collab_ollama.model.parameters import Value
from collab_ollama.model.stated_sampling import sampling_of
from collab_ollama.server.device_memory import available_memory
from collab_plugin.errors import CollabError

DEFAULT_CONTEXT = 8192
"""Ollama's own default goes by the GPU's memory, up to 262,144 tokens: too much beside a model that fills it."""
PLAIN_TEMPLATE = "{{ .System }}{{ .Prompt }}"


@dataclass(frozen=True)
class Defaults:
    """``notes``: what the model's files state and is left out, a sentence each."""

    parameters: dict[str, Value]
    notes: tuple[str, ...]


def default_parameters(
    artifact: OllamaArtifact, num_ctx: int | None, mmap: bool | None, generation: Mapping[str, Any]
) -> Defaults:
    """Parameters for ``artifact``; ``num_ctx`` and ``mmap`` as given, chosen here when None.

    ``generation`` is a parsed generation_config.json (read_generation_config), or empty. Memory mapping is
    switched on when the file is larger than the free memory of this machine: without a GPU, Ollama would
    read it whole into memory otherwise.
    """
    context = num_ctx or min(DEFAULT_CONTEXT, artifact.context_length or DEFAULT_CONTEXT)
    if artifact.context_length and context > artifact.context_length:
        raise CollabError(f"`num_ctx` {context} is more than the model's {artifact.context_length} tokens of context")
    parameters: dict[str, Value] = {"num_ctx": context}
    if mmap is None:
        mmap = True if artifact.bytes > available_memory() else None
    if mmap is not None:
        parameters["use_mmap"] = mmap
    sampling = sampling_of(artifact.checkpoint.metadata, generation)
    return Defaults(parameters | sampling.parameters, sampling.notes)


def read_generation_config(path: Path) -> dict[str, Any]:
    """Read generation_config.json, or the one in the folder ``path``; CollabError when it is none."""
    file = path / "generation_config.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise CollabError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CollabError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise CollabError(f"{file} is no JSON object")
    return data
