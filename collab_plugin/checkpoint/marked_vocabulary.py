"""A tokenizer.json of BPE whose spaces are marked (Gemma-4), to tokens and kinds of a GGUF.

llama.cpp's tokenizer "gemma4": a space becomes the mark, lines and the breaks between them are merged apart, and what
is no token becomes tokens of its bytes. Nothing else may happen to a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from collab_plugin.errors import CollabError

MODEL, MARK, SCORE = "gemma4", "\u2581", -1000.0
LINES = r"[^\n]+|[\n]+"
"""llama.cpp's pattern (src/llama-vocab.cpp)."""
_SHOWN = frozenset(
    (
        *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
        '<|"|>',
    )
)  # which a reader of chats has to see (conversion/gemma.py)
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}


def check_steps(path: Path, data: Mapping[str, Any]) -> None:
    """CollabError for a step that llama.cpp does not do, or one that is missing."""
    model = data["model"]
    told = {
        "normalizer": data.get("normalizer") in (_NORMALIZER, {"type": "Sequence", "normalizers": [_NORMALIZER]}),
        "pre_tokenizer": data.get("pre_tokenizer") in (None, _SPLIT),  # no space is left to split at
        "decoder": data.get("decoder") == _DECODER,
        "post_processor": (data.get("post_processor") or {}).get("type") in (None, "TemplateProcessing"),
        "model": bool(model.get("byte_fallback")) and not any(
            model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        ),
    }  # fmt: skip
    if wrong := [name for name, right in told.items() if not right]:
        raise CollabError(
            f"{path} has a {wrong[0]} that llama.cpp's tokenizer of Gemma-4 does not have; the tokens would differ"
        )


def kinds_of(tokens: list[str], kinds: list[int]) -> list[int]:
    """``kinds`` of the tokens, with those of single bytes, and of marks of chats that are shown."""
    byte, shown = int(TokenType.BYTE), int(TokenType.USER_DEFINED)
    return [
        shown if token in _SHOWN else byte if _BYTE.fullmatch(token) else kind
        for token, kind in zip(tokens, kinds, strict=True)
    ]
