"""Text to token ids, as the engine llamacpp makes them of the same vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from collab_plugin.errors import CollabError
from collab_vllm.jobs.vllm_job_types import VllmCut

I64 = NDArray[np.int64]


def tokenizer_of(model: str, *, special: bool = False) -> Tokenizer:
    """The model's; the text of a control token is text unless ``special``."""
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.encode_special_tokens = not special
    return tokenizer


def token_ids(tokenizer: Tokenizer, text: str, bos: int | None) -> I64:
    """Token ids i64[n], with BOS in front where the vocabulary adds one."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(ids if bos is None else [bos, *ids], np.int64)


def windows_of(tokenizer: Tokenizer, cut: VllmCut) -> list[I64]:
    """Windows i64[ctx], none across two texts, each starting with BOS where the vocabulary adds one; a text's rest is
    left out."""
    ctx = cut.ctx
    found: list[I64] = []
    total = 0
    for text in cut.texts:
        tokens = token_ids(tokenizer, text.content, cut.bos)
        total += len(tokens)
        found += [tokens[i : i + ctx].copy() for i in range(0, len(tokens) - ctx + 1, ctx)][: cut.chunks]
    if not found:
        raise CollabError(f"{total} tokens of text are less than one window of {ctx}; give more text or lower `ctx`")
    if cut.bos is not None:
        for window in found:
            window[0] = cut.bos
    return found
