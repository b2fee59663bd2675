"""What a model's Modelfile says by default: context, memory mapping, sampling, stop tokens, template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collab_ollama.model.gguf_for_ollama import OllamaArtifact
from collab_ollama.model.parameters import Value
from collab_ollama.server.device_memory import available_memory
from collab_plugin.errors import CollabError

DEFAULT_CONTEXT = 8192
"""Ollama's own default goes by the GPU's memory, up to 262,144 tokens: too much beside a model that fills it."""
PLAIN_TEMPLATE = "{{ .System }}{{ .Prompt }}"

# GGUF keys of llama.cpp (constants.py, Keys.General), and generation_config.json of transformers.
_GGUF_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "repeat_last_n",
}
_HF_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
}


def default_parameters(
    artifact: OllamaArtifact, num_ctx: int | None, mmap: bool | None, generation: Mapping[str, Any]
) -> dict[str, Value]:
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
        free = available_memory()
        mmap = True if free is not None and artifact.bytes > free else None
    if mmap is not None:
        parameters["use_mmap"] = mmap
    return parameters | sampling_defaults(artifact, generation) | stop_tokens(artifact, generation)


def sampling_defaults(artifact: OllamaArtifact, generation: Mapping[str, Any]) -> dict[str, Value]:
    """Sampling parameters that the GGUF or generation_config.json states; the latter wins."""
    found: dict[str, Value] = {}
    for key, name in _GGUF_SAMPLING.items():
        if key in artifact.checkpoint.metadata:
            value = artifact.checkpoint.metadata[key].value
            # Stored as 32-bit floats: 0.6, not 0.6000000238418579.
            found[name] = float(f"{value:.7g}") if isinstance(value, float) else value
    found |= {name: generation[key] for key, name in _HF_SAMPLING.items() if generation.get(key) is not None}
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def stop_tokens(artifact: OllamaArtifact, generation: Mapping[str, Any]) -> dict[str, Value]:
    """``stop`` with the texts of generation_config's eos_token_id, or of the GGUF's, when they are known."""
    metadata = artifact.checkpoint.metadata
    ids = generation.get("eos_token_id")
    if ids is None:
        ids = [metadata[key].value for key in _END_KEYS if key in metadata]
    tokens = metadata["tokenizer.ggml.tokens"].value if "tokenizer.ggml.tokens" in metadata else []
    texts = [
        tokens[i] for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int) and 0 <= i < len(tokens)
    ]
    return {"stop": tuple(dict.fromkeys(texts))} if texts else {}


_END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


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
