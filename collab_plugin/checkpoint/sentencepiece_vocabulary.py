"""tokenizer.model of SentencePiece, to tokens, scores and kinds of a GGUF.

A file is a protocol buffer, of which a few fields are read here: the sentencepiece package needs native code of its own
and does not show the normalizer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from collab_plugin.errors import CollabError

FILE = "tokenizer.model"
_KINDS = {1: TokenType.NORMAL, 2: TokenType.UNKNOWN, 3: TokenType.CONTROL, 4: TokenType.USER_DEFINED,
          5: TokenType.UNUSED, 6: TokenType.BYTE}  # fmt: skip
_BPE = 2  # of TrainerSpec.model_type; 1 is unigram
_ADDED = -1000.0  # score of a token that is matched as a whole (conversion/base.py, _create_vocab_sentencepiece)


@dataclass(frozen=True)
class Pieces:
    """``space``: a space is put before a text. ``squeezed``: spaces that follow a space are removed."""

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    space: bool
    squeezed: bool


def read_pieces(path: Path) -> Pieces:
    """CollabError for a file that is damaged, or whose model is not BPE."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    try:
        pieces, trainer, normalizer = [], {}, {}
        for field, value in _fields(data):
            if field == 1:
                pieces.append(dict(_fields(value)))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
        tokens = [bytes(piece[1]).decode("utf-8") for piece in pieces]
        scores = [float(struct.unpack("<f", piece[2])[0]) if 2 in piece else 0.0 for piece in pieces]
        kinds = [int(_KINDS[piece.get(3, 1)]) for piece in pieces]
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        raise CollabError(f"{path} is no sound model of SentencePiece; download it again") from None
    if not tokens or trainer.get(3, 1) != _BPE:
        raise CollabError(f"{path} is a SentencePiece model of another kind than BPE, which is not read here")
    return Pieces(tokens, scores, kinds, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: whole numbers, or bytes of what is longer; IndexError at a ragged end."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(data):
            raise IndexError
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError


def add_tokens(folder: Path, pieces: Pieces, told: Mapping[str, Any], size: int) -> Pieces:
    """With the tokens that tokenizer_config.json (``told``) adds, filled up to ``size`` ids."""
    if len(pieces.tokens) > size:
        raise CollabError(f"{folder}/{FILE} has {len(pieces.tokens)} tokens, the model has {size}")
    missing = range(len(pieces.tokens), size)
    tokens = [*pieces.tokens, *(f"[PAD{i}]" for i in missing)]
    scores = [*pieces.scores, *(-10000.0 for _ in missing)]
    kinds = [*pieces.kinds, *(int(TokenType.UNUSED) for _ in missing)]
    names = told.get("added_tokens_decoder") or {}
    for text, entry in names.items() if isinstance(names, dict) else ():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not str(text).isdecimal() or not isinstance(content, str) or int(text) >= size:
            raise CollabError(f"{folder}/tokenizer_config.json adds a token {str(text)[:20]!r} that the model has not")
        index = int(text)
        special = bool(entry.get("special"))
        tokens[index] = content if special else content.replace("▁", " ")
        kinds[index] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        scores[index] = _ADDED
    return Pieces(tokens, scores, kinds, pieces.space, pieces.squeezed)
