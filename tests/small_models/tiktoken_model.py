"""A tokenizer of tiktoken as Kimi has it, trained on the probe texts."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collab_plugin.checkpoint.compare_tokens import PROBE
from collab_plugin.checkpoint.tiktoken_vocabulary import split_by_ranks


def trained_ranks() -> dict[bytes, int]:
    """Ranks of byte pairs by how often they occur in the probe texts, within words and around them."""
    found = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([b]) for b in word.encode()] for text in PROBE for word in text.replace(" ", "\x00 ").split("\x00")]
    while len(found) < 400:
        counts: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        found[best[0] + best[1]] = len(found)
        words = [split_by_ranks(found, b"".join(word)) for word in words]
    return found


RANKS = trained_ranks()


def with_ranks(folder: Path, ranks: Mapping[bytes, int], told: Mapping[str, Any]) -> Path:
    """``folder`` with a tiktoken.model of ``ranks`` in place of a tokenizer.json."""
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


NAMES = {"400": {"content": "[BOS]", "special": True}, "402": {"content": "<|im_end|>", "special": True}}
TOLD = {"added_tokens_decoder": NAMES, "bos_token": "[BOS]", "chat_template": "T"}
