"""Generation in llama.cpp: greedy is plain llama_cpp's, text streams, mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from engine_calls import CTX, generate, plain_logits
from small_models.tiny_moe import tokens_of

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError

PROMPT = "the quick brown fox "


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen3moe", "grouped"])
def test_greedy_is_the_likeliest_token_each_time(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each step's token is the argmax of plain llama_cpp's logits over the same tokens."""
    path = request.getfixturevalue(model)
    made, pieces = generate(path, PROMPT, tokens=5)
    again, _ = generate(path, PROMPT, tokens=5)
    assert made.text == again.text == "".join(pieces)
    assert made.tokens == len(pieces) == 5
    assert made.prompt_tokens == len(tokens_of(PROMPT))
    assert made.tokens_per_second > 0 < made.prompt_tokens_per_second
    vocabulary = open_gguf(path).metadata["tokenizer.ggml.tokens"].value
    ids = tokens_of(PROMPT)
    for _ in range(5):
        ids.append(int(plain_logits(path, [ids], tmp_path / "logits.npy")[0, -1].argmax()))
    want = b"".join(_bytes(vocabulary[i]) for i in ids[len(tokens_of(PROMPT)) :])
    # Bytes that make no UTF-8 become U+FFFD; one left incomplete at the end is not written.
    assert want.decode("utf-8", "replace").rstrip("\ufffd") == made.text.rstrip("\ufffd")


def _bytes(token: str) -> bytes:
    """The bytes of a byte-level token (GPT-2's table); a control token's own text."""
    if token.startswith("<|"):
        return token.encode()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}
    return bytes(table[c] for c in token)


def test_seed_decides_above_zero(qwen3moe: Path) -> None:
    first, second = (generate(qwen3moe, PROMPT, temperature=2.0, seed=7)[0].text for _ in range(2))
    other = generate(qwen3moe, PROMPT, temperature=2.0, seed=8)[0].text
    assert first == second != other


def test_stops_at_the_context(qwen3moe: Path) -> None:
    room = CTX - len(tokens_of(PROMPT))
    assert generate(qwen3moe, PROMPT, tokens=room)[0].tokens <= room
    with pytest.raises(CollabError, match="raise `ctx`"):
        generate(qwen3moe, PROMPT, tokens=room + 1)


def test_end_of_text_ends_it(qwen3moe: Path, tmp_path: Path) -> None:
    """With the output matrix all zero but for <|end|>'s row, a greedy model ends or never ends at once."""
    from collab_plugin.checkpoint.gguf import open_shard

    checkpoint = open_gguf(qwen3moe)
    hidden = checkpoint.read("output.weight")
    end = checkpoint.metadata["tokenizer.ggml.eos_token_id"].value
    lengths = []
    for sign in (1, -1):
        path = tmp_path / f"{sign}.gguf"
        path.write_bytes(qwen3moe.read_bytes())
        values = np.zeros_like(hidden)
        values[end] = sign * hidden[0]
        header, _ = open_shard(path)
        with path.open("r+b") as file:
            file.seek(header.tensors["output.weight"].offset)
            file.write(values.tobytes())
        lengths.append(generate(path, PROMPT, tokens=4)[0].tokens)
    assert sorted(lengths)[0] == 0


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments), "--threads", "1"])


def test_command(qwen3moe: Path) -> None:
    shown = run(qwen3moe, "-p", PROMPT, "-n", 4, "--ctx", CTX)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith(PROMPT)
    assert "4 tokens at" in shown.stdout
    told = run(qwen3moe, "-p", PROMPT, "-n", 4, "--ctx", CTX, "--json")
    assert json.loads(told.stdout)["text"] in shown.stdout


def test_one_line_for_each_mistake(qwen3moe: Path, tmp_path: Path) -> None:
    cases = (
        ((qwen3moe, "-p", ""), "the prompt is empty"),
        ((qwen3moe, "-p", "x" * 200, "--ctx", CTX), "raise --ctx"),
        ((tmp_path / "none.gguf", "-p", "x"), "does not exist"),
        ((qwen3moe, "-p", "x", "--engine", "nope"), "unknown engine"),
    )
    for arguments, says in cases:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert says in result.stderr
