"""A folder's tokenizer to GGUF keys."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, SpecialVocab, TokenType

from collab_plugin.checkpoint import marked_vocabulary, sentencepiece_vocabulary, tiktoken_vocabulary
from collab_plugin.checkpoint.chat_template import chat_template
from collab_plugin.checkpoint.families.gguf_keys import flag, text, u32
from collab_plugin.checkpoint.tokenizer_steps import known_steps
from collab_plugin.errors import CollabError
from collab_plugin.formats.foreign_file import foreign_hint
from collab_plugin.formats.gguf_values import MetaValue

Keys = dict[str, MetaValue]
_STRINGS, _ARRAY = GGUFValueType.STRING, GGUFValueType.ARRAY


def tokenizer_keys(folder: Path, vocab_size: int, *, marked: bool = False) -> tuple[Keys, list[str]]:
    """Read the tokenizer of ``folder``: keys, and notes on what llama.cpp does otherwise.

    tokenizer.json where it is byte-level BPE, or where spaces are ``marked`` and it is such a BPE; else tiktoken.model,
    else tokenizer.model of SentencePiece. CollabError for what llama.cpp cannot do.
    """
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    told = load_json(config) if config.is_file() else {}
    data = load_json(path) if path.is_file() else None
    notes: list[str] = []
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of post-processors that we do not use
    if marked and data is not None and not _byte_level(data):
        keys = _marked_keys(folder, data, vocab_size)
    elif data is None and (folder / tiktoken_vocabulary.FILE).is_file():
        keys = _tiktoken_keys(folder, told, vocab_size)
    elif (folder / sentencepiece_vocabulary.FILE).is_file() and not _byte_level(data):
        keys = _sentencepiece_keys(folder, told, vocab_size)
    elif data is None and (others := [name for name in _WITHOUT_STEPS if (folder / name).is_file()]):
        raise CollabError(
            f"{folder} has {', '.join(others)} but no tokenizer.json, which is what is read here: save the tokenizer "
            "anew with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    else:
        keys, notes = _byte_level_keys(folder, load_json(path) if data is None else data, vocab_size)
    special = _special(folder, vocab_size, load_merges=False)
    named = _told_ids(told, keys) if not _byte_level(data) else {}
    for kind, token in (named | special.special_token_ids).items():
        keys[f"tokenizer.ggml.{_ID_NAMES.get(kind, kind)}_token_id"] = u32(token)
    # Without the key llama.cpp adds a first token to some kinds of tokenizers; those of marked spaces have one unless
    # told, SentencePiece's and Gemma-4's.
    first = bool(keys["tokenizer.ggml.model"].value != "gpt2")
    for kind, value in ({"bos": first} | special.add_special_token).items():
        keys[f"tokenizer.ggml.add_{kind}_token"] = flag(value)
    template, left_out = chat_template(folder, told)
    if template is not None:
        keys["tokenizer.chat_template"] = text(template)
    return keys, [*notes, *left_out]


def _told_ids(told: Mapping[str, Any], keys: Keys) -> dict[str, int]:
    """Ids of the special tokens that tokenizer_config.json names, where gguf-py, which wants a tokenizer.json, finds
    none."""
    tokens: list[str] = keys["tokenizer.ggml.tokens"].value
    found = {}
    for kind in ("bos", "eos", "unk", "sep", "pad", "mask"):
        name = told.get(f"{kind}_token")
        content = name.get("content") if isinstance(name, dict) else name
        if isinstance(content, str) and content in tokens:
            found[kind] = tokens.index(content)
    return found


def _byte_level(data: Mapping[str, Any] | None) -> bool:
    model = data.get("model") if data is not None else None
    return isinstance(model, dict) and not model.get("byte_fallback")


def _special(folder: Path, vocab_size: int, *, load_merges: bool) -> SpecialVocab:
    """What gguf-py finds in the folder's files; CollabError for what it stumbles over."""
    try:
        return SpecialVocab(folder, load_merges=load_merges, n_vocab=vocab_size)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError, RecursionError) as error:
        raise CollabError(
            f"{folder}: the special tokens of config.json or the tokenizer's files are damaged ({str(error)[:120]}); "
            "download them again"
        ) from None


def _byte_level_keys(folder: Path, data: Mapping[str, Any], vocab_size: int) -> tuple[Keys, list[str]]:
    path, model = folder / "tokenizer.json", _bpe_model(folder, data)
    pre, notes = known_steps(path, data)
    tokens, kinds = _tokens(folder, model["vocab"], data.get("added_tokens") or [], vocab_size)
    merges = _special(folder, vocab_size, load_merges=True).merges
    return _bpe_keys(pre.name, tokens, kinds, list(merges)), notes


def _bpe_model(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CollabError(
            f"{folder / 'tokenizer.json'} is no byte-level BPE; read are that, {tiktoken_vocabulary.FILE} without a "
            f"tokenizer.json, and SentencePiece's {sentencepiece_vocabulary.FILE}"
        )
    return model


def _marked_keys(folder: Path, data: Mapping[str, Any], vocab_size: int) -> Keys:
    model = _bpe_model(folder, data)
    marked_vocabulary.check_steps(folder / "tokenizer.json", data)
    tokens, kinds = _tokens(folder, model["vocab"], data.get("added_tokens") or [], vocab_size)
    merges = _special(folder, vocab_size, load_merges=True).merges
    keys = _bpe_keys(marked_vocabulary.MODEL, tokens, marked_vocabulary.kinds_of(tokens, kinds), list(merges))
    del keys["tokenizer.ggml.pre"]
    return keys | {
        "tokenizer.ggml.model": text(marked_vocabulary.MODEL),
        "tokenizer.ggml.scores": MetaValue([marked_vocabulary.SCORE] * len(tokens), _ARRAY, GGUFValueType.FLOAT32),
        "tokenizer.ggml.add_space_prefix": flag(False),
    }


def _tiktoken_keys(folder: Path, told: Mapping[str, Any], vocab_size: int) -> Keys:
    ranks = tiktoken_vocabulary.read_ranks(folder / tiktoken_vocabulary.FILE)
    tokens, kinds = tiktoken_vocabulary.tiktoken_tokens(folder, ranks, told, vocab_size)
    return _bpe_keys(tiktoken_vocabulary.PRE_TOKENIZER, tokens, kinds, tiktoken_vocabulary.merges_of(ranks))


def _bpe_keys(pre: str, tokens: list[str], kinds: list[int], merges: list[str]) -> Keys:
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(pre),
        "tokenizer.ggml.tokens": MetaValue(tokens, _ARRAY, _STRINGS),
        "tokenizer.ggml.token_type": MetaValue(kinds, _ARRAY, GGUFValueType.INT32),
        "tokenizer.ggml.merges": MetaValue(merges, _ARRAY, _STRINGS),
    }


def _sentencepiece_keys(folder: Path, told: Mapping[str, Any], vocab_size: int) -> Keys:
    read = sentencepiece_vocabulary.read_pieces(folder / sentencepiece_vocabulary.FILE)
    pieces = sentencepiece_vocabulary.add_tokens(folder, read, told, vocab_size)
    scores = [float(np.float32(score)) for score in pieces.scores]
    keys = {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.pre": text("default"),
        "tokenizer.ggml.tokens": MetaValue(pieces.tokens, _ARRAY, _STRINGS),
        "tokenizer.ggml.scores": MetaValue(scores, _ARRAY, GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": MetaValue(pieces.kinds, _ARRAY, GGUFValueType.INT32),
    }
    if not (pieces.space and told.get("add_prefix_space", True)):
        keys["tokenizer.ggml.add_space_prefix"] = flag(False)
    return keys


_ID_NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # GGUF's own spelling


_WITHOUT_STEPS = ("vocab.json", "merges.txt")
"""Vocabularies that do not say how text is split."""


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CollabError for anything else."""
    try:
        data = json.loads(content := path.read_bytes())
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CollabError(f"{path} is not JSON: {foreign_hint(content) or error}") from None
    if not isinstance(data, dict):
        raise CollabError(f"{path} is no JSON object")
    return data


def _tokens(folder: Path, vocab: dict[str, Any], added: list[Any], size: int) -> tuple[list[str], list[int]]:
    by_id: dict[int, tuple[str, int]] = {}
    for token, index in vocab.items():
        by_id[_id(folder, index, size)] = (token, int(TokenType.NORMAL))
    _check_added_beside(folder, added)
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CollabError(f"{folder}/tokenizer.json has an added token without content")
        kind = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
        number, content = _id(folder, entry.get("id"), size), entry["content"]
        if number in by_id and by_id[number][0] != content:
            raise CollabError(
                f"{folder}/tokenizer.json gives the id {number} to two tokens, {by_id[number][0][:40]!r} and "
                f"{content[:40]!r}; save the tokenizer anew with transformers"
            )
        by_id[number] = (content, int(kind))
    rows = [by_id.get(i, (f"[PAD{i}]", int(TokenType.UNUSED))) for i in range(size)]
    return [token for token, _ in rows], [kind for _, kind in rows]


def _id(folder: Path, index: Any, size: int) -> int:
    if not isinstance(index, int) or not 0 <= index < size:
        raise CollabError(
            f"{folder}/tokenizer.json has token id {repr(index)[:40]}, config.json a vocab_size of {size}: tokens "
            "were added and the embedding was not resized, or one of the files is another model's"
        )
    return index


def _check_added_beside(folder: Path, added: list[Any]) -> None:
    """CollabError for a token that transformers would add from a file beside tokenizer.json, which llama.cpp and the
    tokenizers library never see."""
    known = {entry.get("content") for entry in added if isinstance(entry, dict)}
    for name in ("added_tokens.json", "tokenizer_config.json"):
        data = load_json(folder / name) if (folder / name).is_file() else {}
        if name == "tokenizer_config.json":
            entries = data.get("added_tokens_decoder")
            decoder = entries if isinstance(entries, dict) else {}
            data = {str(e["content"]): i for i, e in decoder.items() if isinstance(e, dict) and "content" in e}
        for token, number in data.items():
            if token not in known:
                raise CollabError(
                    f"{folder}/{name} adds the token {token[:40]!r} ({str(number)[:20]}), which tokenizer.json lacks: "
                    "save the tokenizer anew with transformers"
                )
