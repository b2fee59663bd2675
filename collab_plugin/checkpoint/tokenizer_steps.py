"""The steps of a tokenizer.json, each of them known to be what llama.cpp does, or noted, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KIMI_K2 = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)  # of the class TikTokenTokenizer, which the folders hold as code
_DIGITS_FROM_BEHIND = r"\d{1,3}(?=(?:\d{3})*\b)"
_EXAONE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
BYTE_LEVEL = "ByteLevel"
"""Stands for GPT-2's pattern, which the step of that name applies itself."""


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's (src/llama-vocab.cpp). ``patterns`` split text one after the other; ``ignore_merges``: a word
    that is a token is taken as it is. ``either``: tokenizers that do so and that do not are known by this name, for
    their merges lead to every token."""

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    either: bool = False


PRE_TOKENIZERS = (
    PreTokenizer("qwen2", (_QWEN2,)),
    PreTokenizer("llama-bpe", (_LLAMA3,), ignore_merges=True),
    PreTokenizer("dbrx", (_LLAMA3,)),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_V3)),
    PreTokenizer("gpt-2", (BYTE_LEVEL,)),
    PreTokenizer("kimi-k2", (_KIMI_K2,)),
    PreTokenizer("qwen35", (_QWEN35,)),
    PreTokenizer("gpt-4o", (_O200K,), either=True),
    PreTokenizer("cohere2moe", (_DIGITS_FROM_BEHIND, _O200K)),
    PreTokenizer("exaone-moe", (_EXAONE,)),
)

_MEMBERS = frozenset(
    (
        *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"),
        *("decoder", "model"),
    )
)
_POST_PROCESSORS = ("TemplateProcessing", BYTE_LEVEL)


def known_steps(path: Path, data: Mapping[str, Any]) -> tuple[PreTokenizer, list[str]]:
    """llama.cpp's name of what ``path`` does to text, and notes on what it does and llama.cpp does not.

    CollabError naming the step that llama.cpp has nothing for.
    """
    if unknown := sorted(set(data) - _MEMBERS):
        _refuse(path, f"has {unknown[0]!r}, which is not known here")
    notes = [*_normalizer(path, data.get("normalizer")), *_added_tokens(data.get("added_tokens") or [])]
    for step in _steps(data.get("post_processor"), "processors"):
        if _type(step) not in _POST_PROCESSORS:
            _refuse(path, f"adds tokens by {_type(step)}")
    for step in _steps(data.get("decoder"), "decoders"):
        if _type(step) != BYTE_LEVEL:
            _refuse(path, f"makes text of tokens by {_type(step)}")
    return _pre_tokenizer(path, data.get("pre_tokenizer"), _ignore_merges(path, data["model"])), notes


def _refuse(path: Path, what: str) -> None:
    raise CollabError(
        f"{path} {what}, which llama.cpp does not do to this kind of tokenizer; the tokens would differ: convert the "
        "model with llama.cpp's convert_hf_to_gguf.py, if it knows it, and use the GGUF"
    )


def _steps(step: Any, members: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a sequence, or the one step; none for null."""
    if isinstance(step, dict) and step.get("type") == "Sequence" and isinstance(step.get(members), list):
        for member in step[members]:
            yield from _steps(member, members)
    elif step is not None:
        yield step if isinstance(step, dict) else {"type": str(step)[:40]}


def _type(step: Mapping[str, Any]) -> str:
    return str(step.get("type"))[:40]


def _normalizer(path: Path, normalizer: Any) -> Iterator[str]:
    for step in _steps(normalizer, "normalizers"):
        if _type(step) != "NFC":
            _refuse(path, f"normalizes text by {_type(step)}")
        yield "tokenizer.json brings text to NFC first and llama.cpp does not: decomposed letters become other tokens"


def _added_tokens(added: Any) -> Iterator[str]:
    for entry in added if isinstance(added, list) else []:
        told = [key for key in ("single_word", "lstrip", "rstrip") if isinstance(entry, dict) and entry.get(key)]
        if told:
            token = str(entry.get("content"))[:40]
            yield f"the added token {token!r} is {' and '.join(told)} in tokenizer.json, which llama.cpp does not do"


def _ignore_merges(path: Path, model: Mapping[str, Any]) -> bool:
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            _refuse(path, f"has a BPE model with {key} = {str(model[key])[:40]!r}")
    return bool(model.get("ignore_merges"))


def _pre_tokenizer(path: Path, steps: Any, ignore_merges: bool) -> PreTokenizer:
    patterns, bytes_last = [], False
    for step in _steps(steps, "pretokenizers"):
        if bytes_last:
            _refuse(path, f"splits text by {_type(step)} after ByteLevel")
        if _type(step) == "Split":
            patterns.append(_split(path, step))
        elif _type(step) == BYTE_LEVEL:
            bytes_last = True
            if step.get("add_prefix_space", True):
                _refuse(path, "puts a space before the text (add_prefix_space)")
            if step.get("use_regex", True):
                patterns.append(BYTE_LEVEL)
        else:
            _refuse(path, f"splits text by {_type(step)}")
    if not bytes_last:
        _refuse(path, "does not split text into bytes (ByteLevel)")
    for known in PRE_TOKENIZERS:
        if known.patterns == tuple(patterns) and (known.either or known.ignore_merges == ignore_merges):
            return known
    raise CollabError(
        f"{path} splits text in a way unknown here ({str(patterns)[:80]}..., ignore_merges {ignore_merges}); convert "
        "the model with llama.cpp's convert_hf_to_gguf.py and use the GGUF"
    )


def _split(path: Path, step: Mapping[str, Any]) -> str:
    pattern, how = step.get("pattern"), (step.get("behavior"), bool(step.get("invert")))
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    # Patterns that match everything give the same pieces when what they do not match is removed.
    if not isinstance(regex, str) or (how != ("Isolated", False) and not (how == ("Removed", True) and _whole(regex))):
        _refuse(path, f"splits text at {str(pattern)[:60]!r} ({how[0]}, invert {how[1]})")
    return str(regex)


def _whole(regex: str) -> bool:
    return regex in (_QWEN2, _LLAMA3, _QWEN35, _O200K)
