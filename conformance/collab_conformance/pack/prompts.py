"""Prompts as token ids of the artifact's own vocabulary.

Engines differ in how they split text, so packs hold ids. Any sequence of ids is a fair question; to make them
likely ones, text is cut into the longest tokens that fit, which needs no tokenizer and is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from gguf import TokenType

from collab_conformance.pack.pack_document import Prompt
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.errors import CollabError

# Lengths around engines' batch boundaries, each with the positions whose whole logits are kept: one token, a few
# (still a matrix-vector product in some kernels), one matrix tile, many positions to average over, and one more
# than the usual batch of 512.
_SHAPES = (("one", 1, 1), ("seven", 7, 7), ("tile", 64, 8), ("many", 200, 40), ("past-512", 520, 8))
_GREEDY, _STEPS = "tile", 16
_LONGEST = 48
_MOST_TEXT_BYTES = 2**18


def default_prompts(artifact: Path) -> tuple[Prompt, ...]:
    """`text_prompts` of the text in the package: English, German, French and code."""
    return text_prompts(artifact, Path(__file__).with_name("prompts.txt"))


def text_prompts(artifact: Path, text: Path) -> tuple[Prompt, ...]:
    """Five prompts of 1 to 520 tokens from the start of a UTF-8 file, repeated where it is too short.
    CollabError for a GGUF without a vocabulary of byte-level BPE or SentencePiece, or a text without tokens."""
    vocabulary = _vocabulary(artifact)
    ids = segment(_read(text), vocabulary.ids, vocabulary.kind)
    if not ids:
        raise CollabError(f"{text} has no token of {artifact}")
    stream, found = cycle(ids), []
    for name, length, count in _SHAPES:
        tokens = (*vocabulary.first, *islice(stream, length))[:length]
        last_only = length > 512
        positions = range(length - count, length) if last_only else evenly(length, count)
        found.append(Prompt(name, tokens, tuple(positions), _STEPS if name == _GREEDY else 0))
    return tuple(found)


def _read(text: Path) -> str:
    try:
        with text.open("rb") as file:
            return file.read(_MOST_TEXT_BYTES).decode("utf-8", "ignore")  # the cut may fall into a character
    except OSError as error:
        raise CollabError(f"cannot read {text}: {error.strerror}") from None


def evenly(length: int, count: int) -> list[int]:
    """``count`` <= ``length`` positions spread over 0..length - 1, the last one among them."""
    return [(i + 1) * length // count - 1 for i in range(count)]


def segment(text: str, vocabulary: Mapping[str, int], kind: str) -> list[int]:
    """Token ids of ``text``, the longest token at each place; what no token fits is left out.

    ``kind``: tokenizer.ggml.model, "gpt2" for byte-level vocabularies or "llama" for SentencePiece.
    """
    written = "".join(_ALPHABET[b] for b in text.encode()) if kind == "gpt2" else text.replace(" ", "\u2581")
    ids, at = [], 0
    while at < len(written):
        for end in range(min(at + _LONGEST, len(written)), at, -1):
            if (found := vocabulary.get(written[at:end])) is not None:
                ids.append(found)
                at = end
                break
        else:
            at += 1
    return ids


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte: itself where it prints, else from 256 on in order."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in prints else next(spare)) for byte in range(256)]


_ALPHABET = _byte_alphabet()


@dataclass(frozen=True)
class _Vocabulary:
    """``kind`` as `segment` takes it; ``ids`` of text tokens; ``first``: what a sequence starts with."""

    kind: str
    ids: dict[str, int]
    first: tuple[int, ...]


def _vocabulary(artifact: Path) -> _Vocabulary:
    metadata = {key: meta.value for key, meta in open_gguf(artifact).metadata.items()}
    prefix = "tokenizer.ggml."
    kind, tokens = metadata.get(f"{prefix}model"), metadata.get(f"{prefix}tokens")
    if kind not in ("gpt2", "llama") or not isinstance(tokens, list):
        raise CollabError(f"{artifact} has no byte-level BPE or SentencePiece vocabulary to make prompts of")
    types = metadata.get(f"{prefix}token_type") or [int(TokenType.NORMAL)] * len(tokens)
    ids = {str(t): i for i, (t, k) in enumerate(zip(tokens, types, strict=False)) if k == TokenType.NORMAL}
    start = metadata.get(f"{prefix}bos_token_id")
    # llama.cpp's default where the key is absent: SentencePiece starts with it, BPE does not.
    begins = metadata.get(f"{prefix}add_bos_token", kind == "llama")
    return _Vocabulary(str(kind), ids, (start,) if begins and isinstance(start, int) else ())
