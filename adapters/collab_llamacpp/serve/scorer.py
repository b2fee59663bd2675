"""Log-probabilities of a prompt's tokens, and what comes after it; whole blocks of a prompt that the last
one began with are not computed again."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.native.model import LoadedModel
from collab_llamacpp.native.sampling import piece, sampler
from collab_plugin.errors import CollabError

# llama.cpp's micro-batch in `LoadedModel`. A prompt that begins like the last one is taken up at a multiple of
# it, so that every batch has the shape that it has without: figures do not depend on what was asked before.
BLOCK = 512


@dataclass(frozen=True)
class Scored:
    """A prompt's tokens under the model. ``logprob`` f64[n] in nats, NaN for the first token, which nothing
    comes before; ``top`` i64[n] and ``top_logprob`` f64[n] the likeliest token there."""

    logprob: NDArray[np.float64]
    top: NDArray[np.int64]
    top_logprob: NDArray[np.float64]

    def then_likeliest(self, token: int, logprob: float) -> Scored:
        """The same with one more token at the end, the likeliest there."""
        columns = (self.logprob, logprob), (self.top, token), (self.top_logprob, logprob)
        return Scored(*(np.append(column, value) for column, value in columns))

    def after(self, count: int) -> Scored:
        """The same without its first ``count`` tokens."""
        return Scored(self.logprob[count:], self.top[count:], self.top_logprob[count:])


class Scorer:
    """One loaded model; remembers the last prompt."""

    def __init__(self, session: LoadedModel, ctx: int) -> None:
        self.session = session
        self.ctx = ctx
        self._held: list[int] = []
        self._scored = 0  # positions of `_held` whose figures are known
        self._figures = np.full((3, ctx), np.nan)
        self._rows: dict[int, NDArray[np.float32]] = {}  # position -> log-probabilities of the next token

    def score(self, tokens: Sequence[int]) -> Scored:
        """Score every token given those before it; raises CollabError when there are more than ``ctx``."""
        self._check(len(tokens), 0)
        n = len(tokens)
        start = self._reuse(tokens, self._scored, last=True)
        for begin in range(start, n, BLOCK):
            self._score_block(tokens, begin, min(begin + BLOCK, n))
        self._held, self._scored = list(tokens), n
        figures = self._figures[:, :n].copy()
        return Scored(figures[0], np.nan_to_num(figures[1]).astype(np.int64), figures[2])

    def likeliest_next(self) -> tuple[int, float]:
        """The likeliest token after the prompt scored last, and its log-probability."""
        row = self._rows[self._scored - 1]
        token = int(row.argmax())
        return token, float(row[token])

    def _score_block(self, tokens: Sequence[int], begin: int, end: int) -> None:
        self.session.decode(tokens[begin:end], 0, begin)
        rows = log_probabilities(self.session.logits(end - begin))
        if begin:
            self._put(begin, tokens[begin], self._rows[begin - 1])
        else:
            self._figures[:, 0] = np.nan, 0, np.nan
        for position in range(begin + 1, end):
            self._put(position, tokens[position], rows[position - 1 - begin])
        # What scores a next block's first token, or another last token in place of this one.
        for position in (end - 2, end - 1):
            if position >= begin:
                self._rows[position] = rows[position - begin].copy()

    def _put(self, position: int, token: int, row: NDArray[np.float32]) -> None:
        top = int(row.argmax())
        self._figures[:, position] = row[token], top, row[top]

    def _reuse(self, tokens: Sequence[int], known: int, last: bool = False) -> int:
        """Forget all but what ``tokens`` shares with the last prompt's ``known`` first; return where to go on.

        That is the end of the last whole block that they share; with ``last`` the last token when it alone
        differs: the answers of a multiple-choice question are often one token each.
        """
        shared = 0
        for mine, theirs in zip(self._held[:known], tokens, strict=False):
            if mine != theirs:
                break
            shared += 1
        n = len(tokens)
        start = min(shared, n - 1) // BLOCK * BLOCK
        if last and shared >= n - 1 > 0 and known == n and n % BLOCK:
            start = n - 1
        if not (start and self.session.forget(start)):
            self.session.clear()
            start = 0
        self._rows = {position: row for position, row in self._rows.items() if position < start}
        self._held, self._scored = list(tokens[:start]), min(start, self._scored)
        return start

    def generate(
        self, tokens: Sequence[int], *, max_tokens: int, temperature: float, seed: int, stop: Sequence[str]
    ) -> tuple[str, str]:
        """Continue ``tokens``; return the text, without the stop string, and "stop" or "length"."""
        self._check(len(tokens), max_tokens)
        n = len(tokens)
        start = self._reuse(tokens, len(self._held))
        for begin in range(start, n, BLOCK):
            end = min(begin + BLOCK, n)
            self.session.decode(tokens[begin:end], end - begin - 1, begin)
        self._held = list(tokens)
        return self._continue(n, max_tokens, sampler(temperature, seed), stop)

    def _continue(self, n: int, max_tokens: int, chain: object, stop: Sequence[str]) -> tuple[str, str]:
        text, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        try:
            for made in range(max_tokens):
                token = llama.llama_sampler_sample(chain, self.session.ctx, -1)
                if llama.llama_vocab_is_eog(self.session.vocab, token):
                    return text + decoder.decode(b"", True), "stop"
                text += decoder.decode(piece(self.session, token))
                ends = [at for s in stop if s and (at := text.find(s)) >= 0]
                if ends:
                    return text[: min(ends)], "stop"
                if made + 1 < max_tokens:
                    self.session.decode([token], 0, n + made)
        finally:
            llama.llama_sampler_free(chain)
        return text + decoder.decode(b"", True), "length"

    def _check(self, tokens: int, more: int) -> None:
        if not tokens:
            raise CollabError("the prompt has no tokens")
        if tokens + more > self.ctx:
            raise CollabError(f"{tokens} prompt tokens and {more} new ones exceed the context of {self.ctx} tokens")


def log_probabilities(logits: NDArray[np.float32], block: int = 32) -> NDArray[np.float32]:
    """f32[n, V] to f32[n, V]: float32 with sums in float64, off by less than 1e-5 nats."""
    out = np.empty_like(logits)
    for start in range(0, len(logits), block):
        x = logits[start : start + block]
        if not np.isfinite(x).all():
            raise CollabError("the model's logits are not finite: the file is damaged or was quantized too hard")
        shifted = x - x.max(-1, keepdims=True)
        total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
        out[start : start + block] = shifted - np.log(total)
    return out
