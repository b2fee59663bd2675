"""Sampling parameters and stop tokens that a GGUF or generation_config.json states, as Ollama takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from collab_ollama.model.parameters import INTEGERS, Value, check_parameters
from collab_ollama.model.token_text import token_text
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

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
_END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


@dataclass(frozen=True)
class StatedSampling:
    """``notes``: what was stated and is left out, and why, a sentence each."""

    parameters: dict[str, Value]
    notes: tuple[str, ...]


def sampling_of(metadata: Mapping[str, MetaValue], generation: Mapping[str, Any]) -> StatedSampling:
    """What the GGUF's ``metadata`` and a parsed generation_config.json state; the latter wins.

    A whole number written as 50.0 is 50. A value that Ollama would not take, or that means nothing, is left out with
    a note: the file is the model's, and its user cannot be asked to mend it.
    """
    parameters: dict[str, Value] = {}
    notes = []
    for where, name, stated in _stated(metadata, generation):
        value = int(stated) if name in INTEGERS and isinstance(stated, float) and stated.is_integer() else stated
        try:
            check_parameters({name: value})
        except CollabError as error:
            notes.append(f"{where} is left out: {error}")
            continue
        parameters[name] = value
    if generation.get("do_sample") is False:
        parameters["temperature"] = 0.0
    texts, more = _stop_tokens(metadata, generation)
    return StatedSampling(parameters | ({"stop": texts} if texts else {}), (*notes, *more))


def _stated(metadata: Mapping[str, MetaValue], generation: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Where it is stated, the parameter's name, the value; later ones win."""
    for key, name in _GGUF_SAMPLING.items():
        if key in metadata:
            value = metadata[key].value
            # Stored as 32-bit floats: 0.6, not 0.6000000238418579.
            yield f"the GGUF's {key}", name, float(f"{value:.7g}") if isinstance(value, float) else value
    for key, name in _HF_SAMPLING.items():
        if generation.get(key) is not None:
            yield f"the generation config's {key}", name, generation[key]


def _stop_tokens(
    metadata: Mapping[str, MetaValue], generation: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of generation_config's eos_token_id, or of the GGUF's, and notes of those that are no text."""
    ids = generation.get("eos_token_id")
    if ids is None:
        ids = [metadata[key].value for key in _END_KEYS if key in metadata]
    known = [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int) and not isinstance(i, bool)]
    texts = {i: token_text(metadata, i) for i in known}
    notes = tuple(
        f"token {i}, which ends a text, is no stop: the GGUF has no text for it" for i, t in texts.items() if not t
    )
    return tuple(dict.fromkeys(t for t in texts.values() if t)), notes
