"""Text to token ids, as the engine llamacpp makes them of the same vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from collab_plugin.engines.text_windows import TextCut, windows_of

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


def model_windows(model: str, cut: TextCut) -> list[I64]:
    """`windows_of` with the tokenizer of the folder ``model``."""
    plain, special = tokenizer_of(model), tokenizer_of(model, special=True)
    return windows_of(cut, lambda text, told: token_ids(special if told else plain, text, None), model)
