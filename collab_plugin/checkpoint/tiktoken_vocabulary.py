"""tiktoken.model (Kimi): byte strings in the order in which they are merged, to tokens and merges of a GGUF."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from collab_plugin.errors import CollabError

FILE = "tiktoken.model"
PRE_TOKENIZER = "kimi-k2"
SPECIAL = 256  # ids behind the last rank that are special tokens, named in tokenizer_config.json or reserved
Ranks = Mapping[bytes, int]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Byte strings and their ranks, which are token ids; CollabError for another file."""
    try:
        lines = path.read_bytes().split(b"\n")
        found = {base64.b64decode(token, validate=True): int(rank) for token, rank in (x.split() for x in lines if x)}
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, binascii.Error):
        raise CollabError(f"{path} is not tiktoken's: each line has a token in base64 and its rank") from None
    if sorted(found.values()) != list(range(len(found))):
        raise CollabError(f"{path} has ranks that are not 0 to {len(found) - 1}; download it again")
    if any(bytes([byte]) not in found for byte in range(256)):
        raise CollabError(f"{path} lacks some of the 256 single bytes; download it again")
    return found


def merges_of(ranks: Ranks) -> list[str]:
    """Pairs that are merged, in order: the two parts that each token is made of when none of higher rank is used."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1 and len(parts := split_by_ranks(ranks, token, rank)) == 2:
            merges.append(" ".join(map(printable, parts)))
    return merges


def split_by_ranks(ranks: Ranks, text: bytes, below: int | None = None) -> list[bytes]:
    """``text`` cut into tokens: of all neighbours, those of the lowest rank are merged first, as tiktoken does.

    ``below``: ranks from this one on are not used.
    """
    parts = [text[i : i + 1] for i in range(len(text))]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest >= (len(ranks) if below is None else below):
            break
        at = pairs.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _alphabet() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others for letters from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


_LETTERS = _alphabet()


def printable(token: bytes) -> str:
    """A token as byte-level BPE writes it."""
    return "".join(_LETTERS[byte] for byte in token)


def tiktoken_tokens(folder: Path, ranks: Ranks, told: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and their kinds (`gguf.TokenType`) for ``size`` ids. ``told``: tokenizer_config.json."""
    if len(ranks) > size:
        raise CollabError(f"{folder}/{FILE} has {len(ranks)} tokens, the model has {size}")
    names = told.get("added_tokens_decoder") or {}
    if not isinstance(names, dict) or not all(isinstance(e, dict) and isinstance(e.get("content"), str)
                                              for e in names.values()):  # fmt: skip
        raise CollabError(f"{folder}/tokenizer_config.json has an added_tokens_decoder with tokens without content")
    tokens = [printable(token) for token, _ in sorted(ranks.items(), key=lambda item: item[1])]
    kinds = [int(TokenType.NORMAL)] * len(tokens)
    for index in range(len(ranks), size):
        if index < len(ranks) + SPECIAL:
            entry = names.get(str(index))
            tokens.append(f"<|reserved_token_{index}|>" if entry is None else entry["content"])
            kinds.append(int(TokenType.CONTROL))
        else:
            tokens.append(f"[PAD{index}]")
            kinds.append(int(TokenType.UNUSED))
    return tokens, kinds
