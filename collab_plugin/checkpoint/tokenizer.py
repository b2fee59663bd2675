"""tokenizer.json to GGUF keys, for byte-level BPE vocabularies."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, SpecialVocab, TokenType

from collab_plugin.checkpoint.chat_template import chat_template
from collab_plugin.checkpoint.families.gguf_keys import flag, text, u32
from collab_plugin.checkpoint.tokenizer_steps import known_steps
from collab_plugin.errors import CollabError
from collab_plugin.formats.foreign_file import foreign_hint
from collab_plugin.formats.gguf_values import MetaValue


def tokenizer_keys(folder: Path, vocab_size: int) -> tuple[dict[str, MetaValue], list[str]]:
    """Read ``folder``/tokenizer.json and its companions: keys, and notes on what llama.cpp does otherwise.

    CollabError for what llama.cpp cannot do.
    """
    path = folder / "tokenizer.json"
    if not path.exists() and (others := [name for name in _WITHOUT_STEPS if (folder / name).is_file()]):
        raise CollabError(
            f"{folder} has {', '.join(others)} but no tokenizer.json, which is what is read here: save the tokenizer "
            "anew with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    data = load_json(path)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CollabError(f"{path} is no byte-level BPE, the only kind supported here")
    pre, notes = known_steps(path, data)
    tokens, kinds = _tokens(folder, model["vocab"], data.get("added_tokens") or [], vocab_size)
    strings, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    keys = {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(pre.name),
        "tokenizer.ggml.tokens": MetaValue(tokens, array, strings),
        "tokenizer.ggml.token_type": MetaValue(kinds, array, GGUFValueType.INT32),
    }
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of post-processors that we do not use
    special = SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
    keys["tokenizer.ggml.merges"] = MetaValue(list(special.merges), array, strings)
    for kind, token in special.special_token_ids.items():
        keys[f"tokenizer.ggml.{_ID_NAMES.get(kind, kind)}_token_id"] = u32(token)
    # Without the key llama.cpp adds a first token to some kinds of tokenizers.
    for kind, value in ({"bos": False} | special.add_special_token).items():
        keys[f"tokenizer.ggml.add_{kind}_token"] = flag(value)
    told = folder / "tokenizer_config.json"
    template, left_out = chat_template(folder, load_json(told) if told.is_file() else {})
    if template is not None:
        keys["tokenizer.chat_template"] = text(template)
    return keys, [*notes, *left_out]


_ID_NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # GGUF's own spelling


_WITHOUT_STEPS = ("tokenizer.model", "tiktoken.model", "vocab.json")
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
