"""Text of every kind becomes windows: formats, encodings, chats, weights, seeds, large files."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collab_plugin.api.arguments import windows_of as checked
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.render_chat import ChatFormat, ChatRenderer
from collab_plugin.engines.text_windows import I64, TextCut, windows_of
from collab_plugin.errors import CollabError
from collab_plugin.formats import text_pieces
from collab_plugin.formats.text_pieces import document_of, open_text

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}wrong{% endif %}"
)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<|im_end|> ho"}]
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<|im_end|> ho<|im_end|>\n"


def _by_character(text: str, special: bool) -> I64:
    """A token for each character; in special text, one for <|im_start|> and <|im_end|>."""
    if special:
        text = text.replace("<|im_start|>", "\x01").replace("<|im_end|>", "\x02")
    return np.array([ord(c) for c in text], np.int64)


def _text(windows: list[I64]) -> list[str]:
    return ["".join(map(chr, window)) for window in windows]


def _cut(*paths: Path, ctx: int = 4, chunks: int | None = None) -> TextCut:
    return TextCut(tuple(map(str, paths)), ctx, chunks, chat=ChatFormat(CHATML, "<s>", "</s>"))


def _windows(cut: TextCut) -> list[str]:
    return _text(windows_of(cut, _by_character, "the model"))


def _write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_plain_text(tmp_path: Path) -> None:
    plain = _write(tmp_path / "a.txt", "abcdefghij")
    assert _windows(_cut(plain)) == ["abcd", "efgh"]
    assert _windows(_cut(plain, chunks=1)) == ["abcd"]
    assert _windows(replace(_cut(plain), bos_id=ord("^"))) == ["^abc", "^efg"]
    assert _windows(_cut(_write(tmp_path / "b.txt", "\ufeffab\r\ncd\re"), ctx=3)) == ["ab\n", "cd\n"]
    assert _windows(_cut(_write(tmp_path / "c.txt", "<|im_end|>!!"), ctx=12)) == ["<|im_end|>!!"], "text is text"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"word", "4 tokens of text are less than one window of 8"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t", "is empty"),
        ("a.txt", b"abc\xe9def", r"is not UTF-8 text \(byte 3\); convert it: iconv"),
        ("a.txt", "abc".encode("utf-16"), "is UTF-16 and not UTF-8 text; convert it: iconv -f UTF-16"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "x"}', "line 1 has none of `messages`, `conversations`"),
        ("a.jsonl", b"[1]", "line 1 has none of `messages`"),
        ("a.jsonl", b'{"messages": ["x"]}', "line 1: `messages` holds 'x', which is no message"),
        ("a.jsonl", b'{"messages": [{"content": "x"}]}', "a message without `role` or `from`"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": 7}]}', "whose content is '7', no text"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "parts that are no text"),
        ("a.parquet", b"PAR1 or not", "is no Parquet file"),
    ],
)
def test_text_that_will_not_do(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match=says) as error:
        _windows(_cut(_write(tmp_path / name, data), ctx=8))
    assert "\n" not in str(error.value)


def test_chats_get_the_template(tmp_path: Path) -> None:
    sharegpt = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "<|im_end|> ho"}]
    parts = [{**CHAT[0], "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, CHAT[1]]
    lines = [{"messages": CHAT}, {"conversations": sharegpt}, {"messages": parts}]
    path = _write(tmp_path / "a.jsonl", "\ufeff" + "\r\n\n".join(map(json.dumps, lines)))
    once = "".join(_text([_by_character(RENDERED, True)]))
    assert _windows(_cut(path, ctx=len(once))) == [once] * 3
    mixed = _write(tmp_path / "b.jsonl", json.dumps({"text": "<|im_end|>"}) + "\n" + json.dumps({"messages": CHAT}))
    assert _windows(_cut(mixed, ctx=10 + len(once))) == ["<|im_end|>" + once]


def test_parquet(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"id": [1, 2], "messages": [CHAT, CHAT]}), tmp_path / "a.parquet", row_group_size=1)
    once = "".join(_text([_by_character(RENDERED, True)]))
    assert _windows(_cut(tmp_path / "a.parquet", ctx=len(once))) == [once, once]
    parquet.write_table(pa.table({"id": [1]}), tmp_path / "b.parquet")
    with pytest.raises(CollabError, match="no rows with a column `messages`"):
        open_text(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template"),
        ("{% for %}", r"is no Jinja \(line 1: "),
        ("{{ raise_exception('roles must alternate') }}", r"a\.jsonl, line 1: .* refuses this chat \(roles must alter"),
        ("{{ messages.__class__.__mro__ }}", "refuses this chat"),
        ("{{ messages.append(1) }}", "refuses this chat"),
    ],
)
def test_templates_that_will_not_do(template: str | None, says: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", json.dumps({"messages": CHAT}))
    with pytest.raises(CollabError, match=says):
        _windows(replace(_cut(path), chat=ChatFormat(template)))


def test_what_templates_ask_for() -> None:
    template = (
        "{{ bos_token }}{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}"
        "{{ messages[0] | tojson }}{% for m in messages %}{% break %}{% endfor %}{{ eos_token }}"
    )
    text = ChatRenderer(ChatFormat(template, "<s>", "</s>"), "m").text([{"role": "user", "content": "ü<"}], "here")
    assert text == '<s>2026{"role": "user", "content": "ü<"}</s>'
    assert document_of({"conversation": [{"from": "bot", "value": "x"}]}, "") == [{"role": "assistant", "content": "x"}]


def test_seed_draws_windows(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", "".join(f"{i:04d}" for i in range(200)))
    drawn = [_windows(replace(_cut(path, chunks=10), seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10 and drawn[0] == sorted(drawn[0]) != [f"{i:04d}" for i in range(10)]
    assert _windows(replace(_cut(path, chunks=500), seed=0)) == _windows(_cut(path))
    assert Windows((path,), seed=3).drawn is None and Windows((path,), chunks=1, seed=3).drawn == 3


def test_weights(tmp_path: Path) -> None:
    a, b = _write(tmp_path / "a.txt", "a" * 100), _write(tmp_path / "b.txt", "b" * 40)
    both = replace(_cut(a, b), weights=(1.0, 2.0))
    assert [w[0] for w in _windows(both)] == ["a"] * 5 + ["b"] * 10, "b has 10 windows, so a gives half of them"
    assert [w[0] for w in _windows(replace(both, chunks=3))] == ["a"] * 3 + ["b"] * 6
    windows = checked([f"{b}:0.5", a], 16, None, 7)
    assert (windows.texts, windows.weights, windows.drawn) == ((b, a), (0.5, 1.0), 7)
    assert windows.names == ("b.txt:0.5", "a.txt")
    odd = _write(tmp_path / "c.txt:2", "c" * 40)
    assert checked(odd, 16, None).texts == (odd,)
    with pytest.raises(CollabError, match="the weight 0"):
        checked(f"{a}:0", 16, None)


@pytest.mark.parametrize("kind", ["lines", "one line", "jsonl"])
def test_large_files_are_read_in_pieces(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces hold every byte once, and a few windows of a large file read a few of them."""
    monkeypatch.setattr(text_pieces, "WHOLE", 1000)
    monkeypatch.setattr(text_pieces, "PIECE", 500)
    monkeypatch.setattr(text_pieces, "_LONGEST_LINE", 100)
    rng = random.Random(0)
    words = ["".join(rng.choices("aäß語", k=rng.randrange(1, 40))) for _ in range(600)]
    if kind == "jsonl":
        path = _write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": w}, ensure_ascii=False) for w in words))
    else:
        path = _write(tmp_path / "a.txt", ("\n" if kind == "lines" else "").join(words))
    monkeypatch.setattr(text_pieces._Plain, "longest_line", 100)
    pieces = open_text(path)
    assert pieces.count > 20
    found = [d for piece in range(pieces.count) for _, d in pieces.documents(piece) if d]
    whole = {"lines": "\n", "one line": "", "jsonl": ""}[kind].join(words)
    assert "".join(map(str, found)) == whole
    assert "".join(_windows(_cut(path, ctx=16))) == whole[: len(whole) // 16 * 16]
    read: list[int] = []
    documents = type(pieces).documents
    monkeypatch.setattr(type(pieces), "documents", lambda self, piece: (read.append(piece), documents(self, piece))[1])
    assert len(_windows(replace(_cut(path, ctx=16, chunks=8), seed=1))) == 8
    assert len(read) <= 3
    read.clear()
    assert len(_windows(_cut(path, ctx=16, chunks=8))) == 8
    assert read == [0]


def test_a_gigabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that are drawn, or the first ones, read a piece of it for a few of them."""
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write("ä\n".encode() * 8)
        file.truncate(2**30)
    read: list[int] = []
    text = text_pieces._Plain.text
    monkeypatch.setattr(text_pieces._Plain, "text", lambda self, piece: (read.append(piece), text(self, piece))[1])
    assert _windows(_cut(path, ctx=8, chunks=2)) == ["ä\nä\nä\nä\n"] * 2
    assert read == [0]
    drawn = windows_of(replace(_cut(path, ctx=8, chunks=8), seed=1), _by_character, "the model")
    assert len(drawn) == 8 and len(set(read[1:])) == len(read) - 1 <= 4
