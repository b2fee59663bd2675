"""The text that a token stands for, from a GGUF's vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gguf import TokenType

from collab_plugin.formats.gguf_values import MetaValue

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"
# Vocabularies whose tokens hold a character for each byte (llama-vocab.cpp, LLAMA_VOCAB_TYPE_BPE).
_BYTE_LEVEL = ("gpt2",)


def token_text(metadata: Mapping[str, MetaValue], token: int) -> str | None:
    """Return the text of ``token``; None for one that does not exist or is a part of a character.

    In a byte-level vocabulary a newline is stored as "\u010a"; in a SentencePiece one as "<0x0A>", and a space as
    "\u2581". Control tokens and those that users add are stored as they read.
    """
    tokens = _list(metadata, "tokenizer.ggml.tokens")
    kinds = _list(metadata, "tokenizer.ggml.token_type")
    stored = tokens[token] if 0 <= token < len(tokens) else None
    if not isinstance(stored, str):
        return None
    kind = kinds[token] if token < len(kinds) else TokenType.NORMAL
    if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
        return stored
    model = metadata.get("tokenizer.ggml.model")
    if model is not None and model.value in _BYTE_LEVEL:
        return _from_byte_level(stored)
    if found := _BYTE.fullmatch(stored):
        return _decoded(bytes([int(found[1], 16)]))
    return stored.replace(_SPACE, " ")


def _list(metadata: Mapping[str, MetaValue], key: str) -> list[object]:
    value = metadata[key].value if key in metadata else []
    return value if isinstance(value, list) else []


def _from_byte_level(stored: str) -> str | None:
    if any(character not in _BYTES for character in stored):
        return stored  # a token beside the alphabet stands for itself
    return _decoded(bytes(_BYTES[character] for character in stored))


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: the printable ones themselves, the others from 256 on in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte) if byte in printable else chr(256 + rest.index(byte)): byte for byte in range(256)}


_BYTES = _byte_alphabet()
