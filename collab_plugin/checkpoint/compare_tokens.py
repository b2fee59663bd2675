"""Do the keys of a GGUF tokenize as the tokenizer.json that they were made of?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from collab_plugin.checkpoint import marked_vocabulary, tiktoken_vocabulary
from collab_plugin.checkpoint.tokenizer_steps import BYTE_LEVEL, PRE_TOKENIZERS
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

# Composed (NFC), for a tokenizer that composes text first is noted elsewhere.
PROBE = (
    "The quick brown fox doesn't jump; IT'S 12,345.67 miles away -- isn't it?\n\n\tYes.  ",
    "Über den Wolken: »größer« als 1.000 €. Съешь же ещё: «ЁЛКА»!\r\nनमस्ते",
    "今天天气很好，2024年1月1日。混合English文字とかな 👩‍👩‍👧 ½ ²",
    "def f(x: int) -> dict[str, int]:\n    return {'a': x ** 2, \"b\": [1,2,3][0]}  # __init__ ~~^^\n\n\n",
    " leading,  double   triple    four\n \n  \t\n\u00a0wide\u3000 ﬁne ＡＢＣ",
)


def check_tokens(folder: Path, metadata: Mapping[str, MetaValue]) -> None:
    """CollabError when a text, or an added token in one, becomes other tokens by ``metadata`` than by
    ``folder``/tokenizer.json. llama.cpp's tokenizer is stood for by the tokenizers library, set up by the keys."""
    if metadata["tokenizer.ggml.model"].value == "llama":
        return  # pieces and scores are SentencePiece's own
    marked = metadata["tokenizer.ggml.model"].value == marked_vocabulary.MODEL
    if not marked and metadata["tokenizer.ggml.pre"].value == tiktoken_vocabulary.PRE_TOKENIZER:
        _check_ranks(folder / tiktoken_vocabulary.FILE, metadata)
        return
    path = folder / "tokenizer.json"
    try:
        original = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise CollabError(f"the tokenizers library cannot read {path}: {str(error)[:120]}") from None
    ours = tokenizer_of(metadata)
    kinds, tokens = metadata["tokenizer.ggml.token_type"].value, metadata["tokenizer.ggml.tokens"].value
    added = [t for t, kind in zip(tokens, kinds, strict=True) if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    breaks = [token for token in tokens if marked and not token.strip("\n")]  # llama.cpp takes them unmerged
    for text in (*PROBE, *(f"so{token}that" for token in (*added, *breaks))):
        expected = original.encode(text, add_special_tokens=False).ids
        found = ours.encode(text, add_special_tokens=False).ids
        if expected != found:
            raise CollabError(
                f"{path} makes {len(expected)} tokens of {text[:40]!r}, the GGUF would make {len(found)} others; "
                "convert the model with llama.cpp's convert_hf_to_gguf.py and use the GGUF"
            )


def _check_ranks(path: Path, metadata: Mapping[str, MetaValue]) -> None:
    """CollabError when merges give other tokens than ``path``'s ranks do, in the words of the same pattern."""
    ranks, ours = tiktoken_vocabulary.read_ranks(path), tokenizer_of(metadata)
    pattern = next(p for p in PRE_TOKENIZERS if p.name == tiktoken_vocabulary.PRE_TOKENIZER).patterns[0]
    split = Split(Regex(pattern), "isolated")
    for text in PROBE:
        words = [word.encode() for word, _ in split.pre_tokenize_str(text)]
        expected = [ranks[part] for word in words for part in tiktoken_vocabulary.split_by_ranks(ranks, word)]
        if expected != ours.encode(text, add_special_tokens=False).ids:
            raise CollabError(f"{path} makes other tokens of {text[:40]!r} than the GGUF would; download it again")


def tokenizer_of(metadata: Mapping[str, MetaValue]) -> Tokenizer:
    """What llama.cpp does by these keys: split, bytes, merges; nothing else happens to a text."""
    values = {name: value.value for name, value in metadata.items() if name.startswith("tokenizer.ggml.")}
    marked = values["tokenizer.ggml.model"] == marked_vocabulary.MODEL
    pre = None if marked else next(p for p in PRE_TOKENIZERS if p.name == values["tokenizer.ggml.pre"])
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in values["tokenizer.ggml.merges"])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        whole = pre is not None and pre.ignore_merges
        made = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=whole, byte_fallback=marked))
    except Exception as error:  # the library raises Exception itself
        raise CollabError(f"the vocabulary and merges of the model do not fit each other: {str(error)[:120]}") from None
    if pre is None:
        made.normalizer = Replace(" ", marked_vocabulary.MARK)
        made.pre_tokenizer = Split(Regex(marked_vocabulary.LINES), "isolated")
    else:
        splits: list[PreTokenizer] = [Split(Regex(p), "isolated") for p in pre.patterns if p != BYTE_LEVEL]
        own = ByteLevel(add_prefix_space=False, use_regex=BYTE_LEVEL in pre.patterns)
        made.pre_tokenizer = Sequence([*splits, own])
    made.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == TokenType.CONTROL)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
        ]
    )
    return made
