"""What Ollama's llama-server tells of a loaded model: the most probable tokens, one position at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from collab_plugin import LogProbabilities, NotOfferedError, Routing, Session

if TYPE_CHECKING:
    from collab_ollama.server.llama_server import LlamaServer

GREEDY_TOP = 5
FRESH = 16
"""Positions of a sequence that are evaluated in batches: each costs all tokens before it."""
MOST_VOCABULARY = 8192
"""Of models whose whole distributions are asked for, about 100 bytes a token and position."""


class OllamaSession(Session):
    """Gives the most probable tokens. ``vocabulary``: rows of the embedding; ``ctx`` as it was asked for."""

    def __init__(self, runner: LlamaServer, vocabulary: int, ctx: int) -> None:
        self._runner, self._vocabulary, self._ctx = runner, vocabulary, ctx

    def logits(self, tokens: Sequence[int], *, batch: int | None = None) -> NDArray[np.float32]:
        """Log-probabilities of all tokens: logits up to a constant at each position."""
        return self.logits_at(tokens, range(len(tokens)), batch=batch)

    def logits_at(
        self, tokens: Sequence[int], positions: Sequence[int], *, batch: int | None = None
    ) -> NDArray[np.float32]:
        """As `logits`. What lies between two positions is evaluated in batches, from an empty cache on."""
        if self._vocabulary > MOST_VOCABULARY:
            raise NotOfferedError(
                f"Ollama gives log-probabilities token by token, and all {self._vocabulary:,} are too many to ask for"
            )
        if batch not in (None, 1):
            raise NotOfferedError("Ollama sets the size of batches itself")
        if len(tokens) >= self._ctx:
            raise NotOfferedError("Ollama needs room for a token more than the prompt has")
        values = np.empty((len(positions), self._vocabulary), np.float32)
        wanted = {position: row for row, position in enumerate(positions)}
        fresh = True
        for position in range(len(tokens)) if batch == 1 else positions:
            n = self._vocabulary if position in wanted else 1
            found = self._runner.next_tokens(tokens[: position + 1], n, fresh=fresh)
            fresh = False
            if position in wanted:
                values[wanted[position]][found.ids[0]] = found.values[0]
        return values

    def routing(self, tokens: Sequence[int]) -> tuple[Routing, ...]:
        raise NotOfferedError("Ollama does not show its routing")

    def top(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        """Token by token on top of the cache, which are matrix-vector products; after some tokens spread over the
        sequence, all up to there is evaluated anew in batches."""
        found = [self._runner.next_tokens(tokens[:end], n, fresh=end == 1) for end in range(1, len(tokens) + 1)]
        for end in range(len(tokens), 0, -max(1, len(tokens) // FRESH)):
            found[end - 1] = self._runner.next_tokens(tokens[:end], n, fresh=True)
        return _joined(found)

    def greedy(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        """Token by token, so that an end of the text does not end it."""
        whole, found = list(tokens), []
        for _ in range(n):
            found.append(self._runner.next_tokens(whole, GREEDY_TOP))
            whole.append(int(found[-1].ids[0, 0]))
        return _joined(found)


def _joined(steps: Sequence[LogProbabilities]) -> LogProbabilities:
    return LogProbabilities(np.concatenate([s.ids for s in steps]), np.concatenate([s.values for s in steps]))
