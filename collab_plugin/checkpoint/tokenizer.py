"""tokenizer.json to GGUF keys, for byte-level BPE vocabularies."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, SpecialVocab, TokenType

from collab_plugin.checkpoint.families.gguf_keys import flag, text, u32
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The patterns of a pre-tokenizer, in order, and llama.cpp's name for it (src/llama-vocab.cpp).
_PRE: dict[tuple[str, ...], str] = {
    (_QWEN2,): "qwen2",
    (_LLAMA3,): "llama-bpe",
    (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_V3): "deepseek-v3",
    ("ByteLevel",): "gpt-2",
}


def tokenizer_keys(folder: Path, vocab_size: int) -> dict[str, MetaValue]:
    """Read ``folder``/tokenizer.json and its companions; CollabError for what llama.cpp cannot do."""
    data = load_json(folder / "tokenizer.json")
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CollabError(f"{folder}/tokenizer.json is no byte-level BPE, the only kind supported here")
    tokens, kinds = _tokens(folder, model["vocab"], data.get("added_tokens") or [], vocab_size)
    strings, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    keys = {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(_pre_name(folder, data.get("pre_tokenizer"))),
        "tokenizer.ggml.tokens": MetaValue(tokens, array, strings),
        "tokenizer.ggml.token_type": MetaValue(kinds, array, GGUFValueType.INT32),
    }
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of post-processors that we do not use
    special = SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
    keys["tokenizer.ggml.merges"] = MetaValue(list(special.merges), array, strings)
    for kind, token in special.special_token_ids.items():
        keys[f"tokenizer.ggml.{_ID_NAMES.get(kind, kind)}_token_id"] = u32(token)
    for kind, value in special.add_special_token.items():
        keys[f"tokenizer.ggml.add_{kind}_token"] = flag(value)
    if isinstance(special.chat_template, str):
        keys["tokenizer.chat_template"] = text(special.chat_template)
    return keys


_ID_NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # GGUF's own spelling


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CollabError for anything else."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CollabError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise CollabError(f"{path} is no JSON object")
    return data


def _tokens(folder: Path, vocab: dict[str, Any], added: list[Any], size: int) -> tuple[list[str], list[int]]:
    by_id: dict[int, tuple[str, int]] = {}
    for token, index in vocab.items():
        by_id[_id(folder, index, size)] = (token, int(TokenType.NORMAL))
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CollabError(f"{folder}/tokenizer.json has an added token without content")
        kind = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
        by_id[_id(folder, entry.get("id"), size)] = (entry["content"], int(kind))
    rows = [by_id.get(i, (f"[PAD{i}]", int(TokenType.UNUSED))) for i in range(size)]
    return [token for token, _ in rows], [kind for _, kind in rows]


def _id(folder: Path, index: Any, size: int) -> int:
    if not isinstance(index, int) or not 0 <= index < size:
        raise CollabError(f"{folder}/tokenizer.json has token id {index!r}, the model has {size} tokens")
    return index


def _pre_name(folder: Path, pre: Any) -> str:
    steps = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    patterns = []
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "Split":
            pattern = step.get("pattern")
            patterns.append(str(pattern.get("Regex")) if isinstance(pattern, dict) else str(pattern))
        elif isinstance(step, dict) and step.get("type") == "ByteLevel" and step.get("use_regex", True):
            patterns.append("ByteLevel")
    name = _PRE.get(tuple(patterns))
    if name is None:
        raise CollabError(
            f"{folder}/tokenizer.json splits text in a way unknown here ({str(patterns)[:80]}...); convert the "
            "model with llama.cpp's convert_hf_to_gguf.py and use the GGUF"
        )
    return name
