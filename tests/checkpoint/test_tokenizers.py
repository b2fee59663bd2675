"""tokenizer.json and chat templates: every step is what llama.cpp does, or named in a note, or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models.hf_folder import qwen, write_folder
from tokenizers import Tokenizer

from collab_plugin.checkpoint.compare_tokens import PROBE, check_tokens
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint, open_safetensors
from collab_plugin.checkpoint.tokenizer_steps import PRE_TOKENIZERS
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan

Change = Callable[[dict[str, Any]], None]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def folder_with(tmp_path: Path, change: Change, name: str = "model") -> Path:
    """A tiny Qwen3-MoE whose tokenizer.json is changed."""
    folder = write_folder(tmp_path / name, *qwen())
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return folder


def put(key: str, value: Any, inside: str | None = None) -> Change:
    def change(data: dict[str, Any]) -> None:
        (data if inside is None else data[inside])[key] = value

    return change


def before_bytes(*steps: dict[str, Any]) -> Change:
    """Pre-tokenizer steps put between the pattern and the bytes."""

    def change(data: dict[str, Any]) -> None:
        data["pre_tokenizer"]["pretokenizers"][1:1] = steps

    return change


def pre(*steps: dict[str, Any]) -> Change:
    return put("pre_tokenizer", {"type": "Sequence", "pretokenizers": list(steps)})


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


QWEN2 = split(PRE_TOKENIZERS[0].patterns[0])
REFUSED: dict[str, tuple[Change, str]] = {
    "lowercase": (put("normalizer", {"type": "Lowercase"}), "normalizes text by Lowercase"),
    "NFKC": (put("normalizer", {"type": "NFKC"}), "normalizes text by NFKC"),
    "in a sequence": (
        put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}),
        "normalizes text by Strip",
    ),
    "prepended": (put("normalizer", {"type": "Prepend", "prepend": "▁"}), "normalizes text by Prepend"),
    "replaced": (
        put("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        "normalizes text by Replace",
    ),
    "no normalizer at all": (put("normalizer", "lower"), "normalizes text by lower"),
    "digits": (before_bytes({"type": "Digits", "individual_digits": True}), "splits text by Digits"),
    "punctuation": (before_bytes({"type": "Punctuation", "behavior": "Isolated"}), "splits text by Punctuation"),
    "whitespace": (before_bytes({"type": "WhitespaceSplit"}), "splits text by WhitespaceSplit"),
    "metaspace": (
        pre({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}),
        "splits text by Metaspace",
    ),
    "another pattern": (before_bytes(split(r"\d")), "splits text in a way unknown here"),
    "a string": (before_bytes({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}), "splits text at"),
    "removed": (pre(QWEN2 | {"behavior": "Removed"}, BYTES), "splits text at"),
    "merged": (pre(QWEN2 | {"behavior": "MergedWithNext"}, BYTES), "splits text at"),
    "space in front": (pre(QWEN2, BYTES | {"add_prefix_space": True}), "add_prefix_space"),
    "space in front unless told": (
        pre(QWEN2, {"type": "ByteLevel", "use_regex": False}),
        "add_prefix_space",
    ),
    "no bytes": (pre(QWEN2), "does not split text into bytes"),
    "after the bytes": (pre(QWEN2, BYTES, QWEN2), "splits text by Split after ByteLevel"),
    "dropout": (put("dropout", 0.1, "model"), "dropout = '0.1'"),
    "suffix": (put("end_of_word_suffix", "</w>", "model"), "end_of_word_suffix"),
    "prefix": (put("continuing_subword_prefix", "##", "model"), "continuing_subword_prefix"),
    "bytes for the unknown": (put("byte_fallback", True, "model"), "byte_fallback"),
    "whole words first": (put("ignore_merges", True, "model"), "ignore_merges True"),
    "another model": (put("type", "WordPiece", "model"), "is no byte-level BPE"),
    "decoder": (put("decoder", {"type": "Metaspace"}), "makes text of tokens by Metaspace"),
    "post-processor": (
        put("post_processor", {"type": "RobertaProcessing", "sep": ["a", 1], "cls": ["b", 2]}),
        "adds tokens by RobertaProcessing",
    ),
    "unknown member": (put("novelty", {"type": "New"}), "has 'novelty', which is not known here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_step_that_llama_cpp_has_not_is_refused(case: str, tmp_path: Path) -> None:
    change, says = REFUSED[case]
    with pytest.raises(CollabError) as error:
        open_safetensors(folder_with(tmp_path, change))
    assert says in str(error.value)
    assert "tokenizer.json" in str(error.value)
    assert "\n" not in str(error.value)


def pre_of(checkpoint: SafetensorsCheckpoint) -> object:
    return checkpoint.metadata["tokenizer.ggml.pre"].value


def test_what_composes_text_is_noted(tmp_path: Path) -> None:
    checkpoint = open_safetensors(folder_with(tmp_path, put("normalizer", {"type": "NFC"})))
    assert ["NFC" in note for note in checkpoint.notes] == [True]
    checkpoint.check_conversion()


def test_spaces_beside_an_added_token_are_noted(tmp_path: Path) -> None:
    def strips(data: dict[str, Any]) -> None:
        data["added_tokens"][0]["lstrip"] = True

    checkpoint = open_safetensors(folder_with(tmp_path, strips))
    assert checkpoint.notes == (
        "the added token '<|endoftext|>' is lstrip in tokenizer.json, which llama.cpp does not do",
    )


TOKENIZE = """
import json, sys
import llama_cpp
llama = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
print(json.dumps([llama.tokenize(t.encode(), add_bos=False, special=False) for t in json.load(sys.stdin)]))
"""
KNOWN: dict[str, tuple[Change, ...]] = {
    "qwen2": (pre(QWEN2, BYTES), pre(QWEN2 | {"behavior": "Removed", "invert": True}, BYTES)),
    "llama-bpe": (pre(split(PRE_TOKENIZERS[1].patterns[0]), BYTES), put("ignore_merges", True, "model")),
    "dbrx": (pre(split(PRE_TOKENIZERS[2].patterns[0]), BYTES),),
    "deepseek-v3": (pre(*map(split, PRE_TOKENIZERS[3].patterns), BYTES),),
    "gpt-2": (put("pre_tokenizer", BYTES | {"use_regex": True}),),
    **{
        known.name: (pre(*map(split, known.patterns), BYTES), put("ignore_merges", known.either, "model"))
        for known in PRE_TOKENIZERS
        if known.name in ("qwen35", "gpt-4o", "cohere2moe", "exaone-moe")
    },
}


@pytest.mark.native
@pytest.mark.parametrize("name", KNOWN)
def test_llama_cpp_tokenizes_alike(name: str, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        for one in KNOWN[name]:
            one(data)

    folder = folder_with(tmp_path, change)
    checkpoint, out = open_safetensors(folder), tmp_path / "out.gguf"
    assert pre_of(checkpoint) == name
    compress(
        checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=lambda done, total=None: None
    )
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(out)], input=json.dumps(PROBE), capture_output=True, text=True, check=True
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROBE]
    assert json.loads(done.stdout) == expected


def test_the_same_pre_tokenizers_are_known_and_tested() -> None:
    others = {"kimi-k2"}  # of no tokenizer.json: test_other_tokenizers.py
    assert list(KNOWN) == [known.name for known in PRE_TOKENIZERS if known.name not in others]


LOWER = put("normalizer", {"type": "Lowercase"})


@pytest.mark.parametrize("change", [LOWER, put("merges", [], "model")], ids=["lowercase", "merges"])
def test_other_tokens_are_noticed(change: Change, tmp_path: Path) -> None:
    """What a step would cost that nobody refused."""
    checkpoint = open_safetensors(folder_with(tmp_path, lambda data: None))
    check_tokens(checkpoint.path, checkpoint.metadata)
    other = folder_with(tmp_path, change, "other")
    with pytest.raises(CollabError, match=r"tokenizer\.json makes \d+ tokens of .The quick brown fox .* \d+ others"):
        check_tokens(other, checkpoint.metadata)


def test_a_token_nobody_added_is_noticed(tmp_path: Path) -> None:
    checkpoint = open_safetensors(folder_with(tmp_path, lambda data: None))
    other = folder_with(tmp_path, put("added_tokens", []), "other")
    with pytest.raises(CollabError, match=r"of 'so<\|endoftext\|>that'"):
        check_tokens(other, checkpoint.metadata)


# -- chat templates


def with_template(tmp_path: Path, template: object, file: str | None = None) -> Path:
    folder = write_folder(tmp_path / "model", *qwen())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    if file is not None:
        (folder / "chat_template.jinja").write_text(file, "utf-8")
    return folder


NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]


@pytest.mark.parametrize(
    ("template", "file", "expected"),
    [("D", None, "D"), (NAMED, None, "D"), ("D", "ünder", "ünder"), (NAMED[:1], None, None), (None, None, None)],
)
def test_the_default_chat_template_is_taken(
    template: object, file: str | None, expected: str | None, tmp_path: Path
) -> None:
    checkpoint = open_safetensors(with_template(tmp_path, template, file))
    found = checkpoint.metadata.get("tokenizer.chat_template")
    assert (found.value if found else None) == expected
    left_out = {2: "rag, tool_use", 0: "tool_use"}[0 if template == NAMED[:1] else 2]
    notes = (f"chat templates left out, a GGUF has the default one: {left_out}",)
    assert checkpoint.notes == (notes if isinstance(template, list) else ())


@pytest.mark.parametrize("template", [7, [7], [{"name": "default"}], {"default": "D"}])
def test_chat_template_of_nonsense(template: object, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="neither text nor named texts"):
        open_safetensors(with_template(tmp_path, template))
