"""tiktoken.model and SentencePiece's tokenizer.model, against the libraries that they are of, and in llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from small_models.hf_folder import deepseek, write_folder
from small_models.marked_tokenizer import write_marked_tokenizer
from small_models.tiktoken_model import RANKS, TOLD, with_ranks
from small_models.torch_python import torch_python

from collab_plugin.checkpoint.compare_tokens import PROBE, check_tokens
from collab_plugin.checkpoint.marked_vocabulary import check_steps
from collab_plugin.checkpoint.sentencepiece_vocabulary import read_pieces
from collab_plugin.checkpoint.tiktoken_vocabulary import merges_of, read_ranks, split_by_ranks
from collab_plugin.checkpoint.tokenizer import tokenizer_keys
from collab_plugin.checkpoint.tokenizer_steps import PRE_TOKENIZERS
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint

SIZE = 900
TOKENIZE = """
import json, sys
import llama_cpp
llama = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
print(json.dumps([llama.tokenize(t.encode(), add_bos=False, special=False) for t in json.load(sys.stdin)]))
"""


def kimi(folder: Path) -> Path:
    config, tensors = deepseek(vocab_size=SIZE)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored = tensors[name]
        tensors[name] = type(stored)("BF16", (SIZE, stored.shape[1]), bytes(2 * SIZE * stored.shape[1]))
    return with_ranks(write_folder(folder, config, tensors), RANKS, TOLD)


def test_ranks_become_tokens_and_merges(tmp_path: Path) -> None:
    keys, notes = tokenizer_keys(with_ranks(tmp_path, RANKS, TOLD), SIZE)
    tokens, kinds = keys["tokenizer.ggml.tokens"].value, keys["tokenizer.ggml.token_type"].value
    assert (len(tokens), len(set(tokens)), notes) == (SIZE, SIZE, [])
    assert (tokens[400], tokens[401], tokens[402]) == ("[BOS]", "<|reserved_token_401|>", "<|im_end|>")
    assert tokens[RANKS[b" "]] == "Ġ"
    assert (kinds[399], kinds[400], kinds[655], kinds[656]) == (
        TokenType.NORMAL, TokenType.CONTROL, TokenType.CONTROL, TokenType.UNUSED
    )  # fmt: skip
    assert keys["tokenizer.ggml.bos_token_id"].value == 400
    assert keys["tokenizer.chat_template"].value == "T"
    assert len(keys["tokenizer.ggml.merges"].value) == 400 - 256
    check_tokens(tmp_path, keys)


def test_words_are_cut_as_tiktoken_cuts_them() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding("ours", pat_str=r"[\s\S]+", mergeable_ranks=RANKS, special_tokens={})
    for text in PROBE:
        assert [RANKS[part] for part in split_by_ranks(RANKS, text.encode())] == theirs.encode(text)


def test_other_merges_are_noticed(tmp_path: Path) -> None:
    keys, _ = tokenizer_keys(with_ranks(tmp_path, RANKS, {}), SIZE)
    keys["tokenizer.ggml.merges"].value.reverse()
    with pytest.raises(CollabError, match="makes other tokens of"):
        check_tokens(tmp_path, keys)


@pytest.mark.native
def test_llama_cpp_tokenizes_as_tiktoken(tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    checkpoint, out = open_checkpoint(kimi(tmp_path / "model")), tmp_path / "out.gguf"
    checkpoint.check_conversion()
    compress(
        checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=lambda done, total=None: None
    )
    pattern = next(known.patterns[0] for known in PRE_TOKENIZERS if known.name == "kimi-k2")
    theirs = tiktoken.Encoding("kimi", pat_str=pattern, mergeable_ranks=RANKS, special_tokens={})
    # llama.cpp splits words at combining marks, which the pattern does not: docs/checkpoints.md.
    texts = tuple(text.split("\nनमस्ते")[0] for text in PROBE)
    assert tokenized(out, texts) == [theirs.encode(text) for text in texts]
    assert tokenized(out, ("नमस्ते",)) != [theirs.encode("नमस्ते")]


def tokenized(gguf: Path, texts: tuple[str, ...]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(gguf)], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"nonsense", "is not tiktoken's"),
        (b"!!!! 0\n", "is not tiktoken's"),
        (b"YQ== 1\n", "ranks that are not 0 to 0"),
        (b"YQ== 0\n", "lacks some of the 256 single bytes"),
    ],
)
def test_a_damaged_tiktoken_model(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").write_bytes(data)
    with pytest.raises(CollabError, match=says):
        read_ranks(tmp_path / "tiktoken.model")


def test_merges_of_a_token_that_nothing_makes_are_left_out() -> None:
    assert merges_of({**{bytes([b]): b for b in range(256)}, b"abc": 256}) == []


# -- SentencePiece


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A model trained on the probe texts, and the package's ids of them."""
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    job = {"train": PROBE * 20, "probe": PROBE, "size": 500}
    done = subprocess.run(
        [torch_python("sentencepiece"), str(Path(__file__).with_name("sentencepiece_job.py")), str(path)],
        input=json.dumps(job), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return path, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.native
def test_llama_cpp_tokenizes_as_sentencepiece(sentencepiece: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    path, expected = sentencepiece
    folder = kimi(tmp_path / "model")
    (folder / "tiktoken.model").unlink()
    (folder / "tokenizer.model").write_bytes(path.read_bytes())
    told = {"added_tokens_decoder": {"1": {"content": "<s>", "special": True}}, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    checkpoint, out = open_checkpoint(folder), tmp_path / "out.gguf"
    keys = checkpoint.metadata
    assert keys["tokenizer.ggml.model"].value == "llama"
    assert keys["tokenizer.ggml.add_bos_token"].value is True
    kinds = keys["tokenizer.ggml.token_type"].value
    assert (kinds[0], kinds[1], kinds[3]) == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
    compress(
        checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=lambda done, total=None: None
    )
    assert tokenized(out, PROBE) == expected


@pytest.mark.slow
def test_every_byte_less_is_refused(sentencepiece: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    data = sentencepiece[0].read_bytes()
    cut = tmp_path / "tokenizer.model"
    for length in range(0, len(data), 97):
        cut.write_bytes(data[:length])
        try:
            read_pieces(cut)
        except CollabError as error:
            assert "\n" not in str(error)


def test_another_kind_of_sentencepiece(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(bytes([0x0A, 3, 0x0A, 1, 0x61]))  # one piece, and no trainer: unigram
    with pytest.raises(CollabError, match="of another kind than BPE"):
        read_pieces(path)


# -- BPE whose spaces are marked, of Gemma-4


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("normalizer", None),
        ("normalizer", {"type": "Prepend", "prepend": "▁"}),
        ("pre_tokenizer", {"type": "WhitespaceSplit"}),
        ("decoder", {"type": "ByteFallback"}),
        ("post_processor", {"type": "RobertaProcessing"}),
        ("model", {"type": "BPE", "vocab": {}, "merges": []}),
    ],
)
def test_marked_spaces_with_another_step_are_refused(member: str, value: object, tmp_path: Path) -> None:
    path, _ = write_marked_tokenizer(tmp_path, SIZE)
    data = json.loads(path.read_text())
    check_steps(path, data)
    with pytest.raises(CollabError, match=f"has a {member} that llama.cpp's tokenizer of Gemma-4 does not have"):
        check_steps(path, data | {member: value})
