"""What the types of a pack's document cannot say, and the arrays that it promises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_conformance.pack.pack_document import GREEDY_TOP, TOP, PackDocument, Prompt
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import stored_type

MOST_PROMPTS, MOST_TOKENS, MOST_STEPS, MOST_VOCABULARY = 64, 2**16, 2**10, 2**24
_HASH = re.compile("[0-9a-f]{64}")
_NAME = re.compile("[a-z0-9][a-z0-9-]{0,63}")


def check_document(document: PackDocument) -> None:
    """CollabError naming the JSON path of what is wrong."""
    for ok, path, what in _claims(document):
        if not ok:
            raise CollabError(f"{path} {what}")
    for name in document.artifact.types.values():
        stored_type(name)


def _claims(d: PackDocument) -> Iterable[tuple[bool, str, str]]:
    a = d.artifact
    for path, value in (("artifact.sha256", a.sha256), ("artifact.tokenizer", a.tokenizer),
                        ("tensors_sha256", d.tensors_sha256),
                        *((("scales_sha256", d.scales_sha256),) if d.scales_sha256 else ())):  # fmt: skip
        yield _HASH.fullmatch(value) is not None, f"$.{path}", "is no sha256 in hex"
    plain = a.name not in ("", ".", "..") and not re.search(r"[/\\\0]", a.name)
    yield plain, "$.artifact.name", "is not a plain file name"
    yield a.bytes > 0, "$.artifact.bytes", "is not above 0"
    yield 0 < a.vocabulary <= MOST_VOCABULARY, "$.artifact.vocabulary", f"is not in 1..{MOST_VOCABULARY}"
    yield list(a.moe_layers) == sorted(set(a.moe_layers)), "$.artifact.moe_layers", "does not ascend"
    yield all(0 <= layer < 2**16 for layer in a.moe_layers), "$.artifact.moe_layers", "names an impossible layer"
    yield 0 <= a.experts_used <= a.expert_count < 2**16, "$.artifact.experts_used", "is more than expert_count"
    yield not (d.routing and not (a.moe_layers and a.experts_used)), "$.routing", "is true without MoE layers"
    yield 0 < len(d.prompts) <= MOST_PROMPTS, "$.prompts", f"has {len(d.prompts)} prompts, not 1 to {MOST_PROMPTS}"
    names = [prompt.name for prompt in d.prompts]
    yield len(set(names)) == len(names), "$.prompts", "repeats a name"
    for i, prompt in enumerate(d.prompts):
        for ok, member, what in _prompt_claims(prompt, a.vocabulary):
            yield ok, f"$.prompts[{i}].{member}", what


def _prompt_claims(prompt: Prompt, vocabulary: int) -> Iterable[tuple[bool, str, str]]:
    count = len(prompt.tokens)
    yield _NAME.fullmatch(prompt.name) is not None, "name", "is not of a-z, 0-9 and -"
    yield 0 < count <= MOST_TOKENS, "tokens", f"has {count} tokens, not 1 to {MOST_TOKENS}"
    yield all(0 <= t < vocabulary for t in prompt.tokens), "tokens", f"has an id outside the {vocabulary} tokens"
    yield list(prompt.positions) == sorted(set(prompt.positions)), "positions", "does not ascend"
    yield all(0 <= p < count for p in prompt.positions), "positions", f"has one outside the {count} tokens"
    yield 0 <= prompt.greedy_steps <= MOST_STEPS, "greedy_steps", f"is not in 0..{MOST_STEPS}"


def expected_arrays(document: PackDocument) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name of each array, its numpy type and shape."""
    a = document.artifact
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for i, prompt in enumerate(document.prompts):
        tokens, layers = len(prompt.tokens), len(a.moe_layers)
        shapes = {"top": (tokens, min(TOP, a.vocabulary)), "logits": (len(prompt.positions), a.vocabulary)}
        if prompt.greedy_steps:
            shapes["greedy"] = (prompt.greedy_steps, min(GREEDY_TOP, a.vocabulary))
        for name, shape in shapes.items():
            if name == "logits":
                found[f"{i}.logits"] = ("float32", shape)
            else:
                found |= {f"{i}.{name}.ids": ("int32", shape), f"{i}.{name}.values": ("float32", shape)}
        if document.routing:
            found[f"{i}.routing.ids"] = ("int32", (layers, tokens, a.experts_used))
            found[f"{i}.routing.margins"] = ("float32", (layers, tokens))
    return found


def check_arrays(where: str, document: PackDocument, arrays: Mapping[str, NDArray[Any]]) -> None:
    """CollabError naming the array that is missing, too many, of another type or shape, or out of range."""
    expected = expected_arrays(document)
    for name in sorted(set(expected) ^ set(arrays)):
        raise CollabError(f"{where} {'lacks' if name in expected else 'has an unknown'} array {name[:60]!r}")
    for name, (kind, shape) in expected.items():
        array = arrays[name]
        if array.dtype.name != kind or array.shape != shape:
            raise CollabError(f"{where}: {name} is {array.dtype.name}{array.shape}, not {kind}{shape}")
        problem = _problem(name.split(".", 1)[1], array, document)
        if problem:
            raise CollabError(f"{where}: {name} {problem}")


def _problem(part: str, array: NDArray[Any], document: PackDocument) -> str | None:
    """What is wrong with the values, None when nothing is."""
    if array.dtype == np.int32:
        limit = document.artifact.expert_count if part == "routing.ids" else document.artifact.vocabulary
        if ((array < 0) | (array >= limit)).any():
            return f"has an id outside 0..{limit - 1}"
        ordered = np.sort(array, -1)
        return "repeats an id" if (ordered[..., 1:] == ordered[..., :-1]).any() else None
    if part == "routing.margins":
        return None if (array >= 0).all() else "has a margin below 0 or NaN"  # infinite: nothing was left out
    if not np.isfinite(array).all():
        return "holds values that are not finite"
    if part.endswith("values") and ((array > 1e-5).any() or (np.diff(array, axis=-1) > 0).any()):
        return "are no falling log-probabilities"
    return None
