"""Text cut into windows of tokens, the same way for every engine: in order, or drawn at random with a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.engine import Windows
from collab_plugin.engines.render_chat import ChatFormat, ChatRenderer
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.text_pieces import Document, TextPieces, open_text

I64 = NDArray[np.int64]
Tokenize = Callable[[str, bool], I64]
"""Text, and whether the text of control tokens stands for them, to token ids i64[n] without BOS."""
_FEWEST_A_PIECE = 4  # windows of a large file's piece: to read and tokenize a piece for one would be slow


@dataclass(frozen=True)
class TextCut:
    """What a child process needs to cut text as `Windows` says. ``texts`` are absolute paths. ``bos_id`` begins each
    window, None where the vocabulary adds none."""

    texts: tuple[str, ...]
    ctx: int
    chunks: int | None = None
    weights: tuple[float, ...] = ()
    seed: int | None = None
    chat: ChatFormat = field(default_factory=ChatFormat)
    bos_id: int | None = None


def text_cut(windows: Windows, metadata: Mapping[str, MetaValue]) -> TextCut:
    """``metadata``: of the model, under GGUF keys."""

    def value(key: str) -> object:
        found = metadata.get(f"tokenizer.{key}")
        return None if found is None else found.value

    tokens = value("ggml.tokens")

    def token(key: str) -> str:
        number = value(f"ggml.{key}_token_id")
        known = isinstance(tokens, list) and isinstance(number, int) and 0 <= number < len(tokens)
        return str(tokens[number]) if known and isinstance(tokens, list) and isinstance(number, int) else ""

    template, bos = value("chat_template"), value("ggml.bos_token_id")
    chat = ChatFormat(template if isinstance(template, str) else None, token("bos"), token("eos"))
    begins = value("ggml.add_bos_token") is True and isinstance(bos, int)
    return TextCut(
        tuple(str(text.resolve()) for text in windows.texts),
        windows.ctx,
        windows.chunks,
        windows.weights,
        windows.seed,
        chat,
        bos if begins and isinstance(bos, int) else None,
    )


def windows_of(cut: TextCut, tokenize: Tokenize, model: str) -> list[I64]:
    """Windows i64[ctx], none across two texts, each beginning with BOS where the vocabulary adds one; what does not
    fill one is left out.

    Documents of one text follow each other within windows. ``weights`` multiply ``chunks``; without ``chunks``
    they are the proportions of windows of the texts, as many as the scarcest allows. With a ``seed`` the windows that
    are not all are drawn at random, else they are the first. CollabError when the text does not fill one window.
    """
    texts = [_Text(open_text(Path(path)), number, cut, tokenize, model) for number, path in enumerate(cut.texts)]
    found = [window for text, wanted in zip(texts, _wanted(texts, cut), strict=True) for window in text.take(wanted)]
    if not found:
        total = sum(text.tokens for text in texts)
        raise CollabError(
            f"{total} tokens of text are less than one window of {cut.ctx}; give more text or lower `ctx`"
        )
    if cut.bos_id is not None:
        for window in found:
            window[0] = cut.bos_id
    return found


def _wanted(texts: list[_Text], cut: TextCut) -> list[int | None]:
    """Windows to take of each text, None for all."""
    weights = cut.weights or (1.0,) * len(texts)
    if cut.chunks is not None:
        return [max(1, round(cut.chunks * weight)) for weight in weights]
    if len(set(weights)) == 1:
        return [None] * len(texts)
    scarcest = min(text.available() / weight for text, weight in zip(texts, weights, strict=True))
    return [int(scarcest * weight + 1e-9) for weight in weights]


class _Text:
    """One text. ``tokens``: how many were met so far."""

    def __init__(self, pieces: TextPieces, number: int, cut: TextCut, tokenize: Tokenize, model: str) -> None:
        self.pieces, self.number, self.cut, self.tokens = pieces, number, cut, 0
        self._tokenize, self._model = tokenize, model
        self._chats: ChatRenderer | None = None
        self._all: list[I64] | None = None

    def available(self) -> int:
        self._all = list(self._in_order(None))
        return len(self._all)

    def take(self, wanted: int | None) -> list[I64]:
        if wanted is None or self.cut.seed is None:
            return self._all[:wanted] if self._all is not None else list(self._in_order(wanted))
        random = np.random.default_rng((self.cut.seed, self.number))
        if self._all is not None:
            return _some(self._all, wanted, random)
        each = max(_FEWEST_A_PIECE, -(-wanted // self.pieces.count)) if self.pieces.count > 1 else wanted
        found: list[I64] = []
        for piece in random.permutation(self.pieces.count):
            whole = list(_cut(self._piece(int(piece), first=True), self.cut.ctx))
            found += _some(whole, min(each, wanted - len(found)), random)
            if len(found) == wanted:
                break
        return found

    def _in_order(self, wanted: int | None) -> Iterator[I64]:
        """The first ``wanted`` windows; pieces are read while they are needed, and what one leaves goes before the
        next."""
        rest, count = np.empty(0, np.int64), 0
        for piece in range(self.pieces.count):
            rest = np.concatenate([rest, self._piece(piece, first=not piece)])
            for window in _cut(rest, self.cut.ctx):
                yield window
                count += 1
                if count == wanted:
                    return
            rest = rest[len(rest) // self.cut.ctx * self.cut.ctx :]

    def _piece(self, piece: int, *, first: bool) -> I64:
        parts = [self._ids(where, document) for where, document in self.pieces.documents(piece)]
        if first and self.cut.bos_id is not None:
            parts.insert(0, np.array([self.cut.bos_id], np.int64))
        tokens = np.concatenate([np.empty(0, np.int64), *parts])
        self.tokens += len(tokens)
        return tokens

    def _ids(self, where: str, document: Document) -> I64:
        if isinstance(document, str):
            return self._tokenize(document, False)
        if self._chats is None:
            self._chats = ChatRenderer(self.cut.chat, self._model)
        return self._tokenize(self._chats.text(document, where), True)


def _cut(tokens: I64, ctx: int) -> Iterator[I64]:
    for start in range(0, len(tokens) - ctx + 1, ctx):
        yield tokens[start : start + ctx].copy()


def _some(windows: list[I64], wanted: int, random: np.random.Generator) -> list[I64]:
    """``wanted`` of them in their order, all when they are no more."""
    if wanted >= len(windows):
        return windows
    return [windows[i] for i in np.sort(random.choice(len(windows), wanted, replace=False))]
