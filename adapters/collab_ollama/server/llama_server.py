"""The llama-server that Ollama started, asked directly: prompts as token ids, log-probabilities with token ids.

Ollama's own API takes text and gives no ids. This is the same process with the same model and options; it
listens on loopback without a key, and its port is in Ollama's log. Source: tools/server of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from collab_plugin.engines.target import LogProbabilities
from collab_plugin.errors import CollabError


class LlamaServer:
    """Talks to the runner on ``port``; to be closed."""

    def __init__(self, port: int) -> None:
        # Evaluating a long prompt on a slow device takes minutes; who asks has a time limit of its own.
        timeout = httpx.Timeout(None, connect=10.0)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=timeout, trust_env=False)
        self._plain: int | None = None

    def close(self) -> None:
        self._http.close()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text`` as Ollama's raw mode has them: special tokens added and understood."""
        reply = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(token) for token in reply["tokens"]]

    def next_tokens(self, tokens: Sequence[int], n: int, *, fresh: bool = False) -> LogProbabilities:
        """The ``n`` most probable tokens after ``tokens``, [1, n]; of raw logits, before any sampling.

        What the last prompt left in the cache is used again, unless ``fresh``: then all is evaluated, in
        batches. CollabError for an answer of another shape.
        """
        request = {
            "prompt": list(tokens),
            "n_predict": 1,
            "n_probs": n,
            "temperature": 0,
            "cache_prompt": not fresh,
            # Of a token that ends the text or is half a character the server tells nothing. So it is made to
            # take another; the probabilities are those from before.
            "logit_bias": [[self._plain_token(), 1000.0]],
            "ignore_eos": True,
            "response_fields": ["completion_probabilities", "tokens_evaluated"],
        }
        reply = self._post("/completion", request)
        evaluated = reply.get("tokens_evaluated")
        if evaluated != len(tokens):
            raise CollabError(f"llama-server took {evaluated} of {len(tokens)} tokens: the context is too short")
        try:
            (step,) = reply["completion_probabilities"]
            pairs = [(int(entry["id"]), float(entry["logprob"])) for entry in step["top_logprobs"]]
        except (KeyError, ValueError, TypeError):
            raise CollabError(f"llama-server gave no log-probabilities: {json.dumps(reply)[:200]}") from None
        if len(pairs) != n:
            raise CollabError(f"llama-server gave {len(pairs)} log-probabilities, not {n}")
        ids, values = zip(*pairs, strict=True)
        if min(values) < -1e30:  # the server's word for the logarithm of 0
            raise CollabError("llama-server rounded a probability to 0")
        return LogProbabilities(np.array([ids], np.int32), np.array([values], np.float32))

    def _plain_token(self) -> int:
        if self._plain is None:
            reply = self._post("/tokenize", {"content": "a", "add_special": False})
            self._plain = int(reply["tokens"][-1])
        return self._plain

    def _post(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self._http.post(path, json=request)
        except httpx.TransportError as error:
            raise CollabError(f"the llama-server below Ollama broke off ({error or type(error).__name__})") from None
        if reply.status_code != httpx.codes.OK:
            raise CollabError(f"the llama-server below Ollama refused {path}: {reply.text[:200]}")
        found: dict[str, Any] = reply.json()
        return found
