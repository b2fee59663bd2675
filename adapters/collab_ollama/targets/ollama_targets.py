"""Ollama as a target of `verify`: a server of our own with a models folder of its own, and the runner below it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collab_ollama.server.log_devices import devices_of, runner_port
from collab_plugin.engines.target import (
    F32,
    Device,
    LoadOptions,
    LogProbabilities,
    NotOfferedError,
    Routing,
    Session,
    Target,
    TargetInfo,
    TargetProvider,
)
from collab_plugin.errors import CollabError

if TYPE_CHECKING:
    from collab_ollama.server.client import Client
    from collab_ollama.server.llama_server import LlamaServer
    from collab_ollama.server.server_process import Server

NAME = "ollama"
MODEL = "collab-verify:latest"
GREEDY_TOP = 5
FRESH = 16
"""Positions of a sequence that are evaluated in batches: each costs all tokens before it."""
MOST_VOCABULARY = 8192
"""Of models whose whole distributions are asked for, about 100 bytes a token and position."""
FIND_SECONDS = 20.0
"""Ollama asks every GPU library in a process of its own."""
_PROBE = "In the beginning"
_AGREE = 1e-4
"""Nats between the API's and the runner's log-probability of one token, both without a cache: the same program
computes the same thing twice."""
_CACHES = {"f32": "", "f16": "f16", "q8_0": "q8_0"}


class OllamaTargets(TargetProvider):
    """One target: Ollama chooses among devices itself."""

    name = NAME

    def find(self) -> Sequence[TargetInfo]:
        try:
            return [_look()]
        except CollabError as error:
            return [TargetInfo(NAME, NAME, "", None, absent=str(error))]

    def open(self, name: str) -> Target:
        return OllamaTarget()


def _look() -> TargetInfo:
    from collab_ollama.server.own_server import own_server

    with tempfile.TemporaryDirectory(prefix="collab-ollama-") as folder, own_server(Path(folder), {}) as both:
        server, client = both
        devices = _wait_for_devices(server)
        return TargetInfo(NAME, NAME, client.version(), devices[0] if devices else None)


def _wait_for_devices(server: Server) -> list[Device]:
    end = time.monotonic() + FIND_SECONDS
    while not (found := devices_of(server.log.read_text(errors="replace"))) and time.monotonic() < end:
        time.sleep(0.1)
    return found


class OllamaTarget(Target):
    """The models folder stays until this process ends: an artifact is created once, however often it is loaded."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="collab-ollama-")
        self._created: Path | None = None

    @contextmanager
    def load(self, artifact: Path, options: LoadOptions) -> Iterator[Session]:
        from collab_ollama.server.llama_server import LlamaServer
        from collab_ollama.server.own_server import create_model, own_server

        if options.kv_type not in _CACHES:
            raise NotOfferedError(f"Ollama has no cache of type {options.kv_type}")
        with ExitStack() as stack:
            cache = {"OLLAMA_KV_CACHE_TYPE": _CACHES[options.kv_type]}
            server, client = stack.enter_context(own_server(Path(self._folder.name), cache))
            if self._created != artifact:
                create_model(artifact, MODEL, client, Path(self._folder.name))
                self._created = artifact
            settings = {"num_ctx": options.ctx, "num_thread": options.threads, "temperature": 0, "seed": 0}
            client.generate({"model": MODEL, "keep_alive": -1, "options": settings})
            _refuse_elsewhere(client, _wait_for_devices(server))
            port = runner_port(server.log.read_text(errors="replace"))
            if port is None:
                raise CollabError(f"Ollama's log tells of no llama-server: {server.last_words()}")
            runner = stack.enter_context(closing(LlamaServer(port)))
            _refuse_other_answers(client, runner, settings)
            yield OllamaSession(runner, _vocabulary(artifact), options.ctx)


def _vocabulary(artifact: Path) -> int:
    from collab_plugin.checkpoint.gguf import open_gguf

    return open_gguf(artifact).tensors["token_embd.weight"].shape[0]


def _refuse_elsewhere(client: Client, devices: Sequence[Device]) -> None:
    """The report names the device that Ollama found; CollabError when the model is not on it."""
    loaded = next((entry for entry in client.running() if entry.get("name") == MODEL), None)
    if loaded is None:
        raise CollabError("Ollama did not keep the model loaded")
    if devices and devices[0].kind != "cpu" and not loaded.get("size_vram"):
        raise CollabError(f"Ollama found {devices[0].name}, but put the model into the CPU's memory")


def _refuse_other_answers(client: Client, runner: LlamaServer, settings: Mapping[str, Any]) -> None:
    """CollabError unless Ollama's own API gives what the runner gives: one text, its tokens and the next one's top."""
    request = {"model": MODEL, "prompt": _PROBE, "raw": True, "logprobs": True, "top_logprobs": GREEDY_TOP}
    reply = client.generate({**request, "options": {**settings, "num_predict": 1}})
    tokens = runner.tokenize(_PROBE)
    if reply.get("prompt_eval_count") != len(tokens):
        raise CollabError(
            f"Ollama makes {reply.get('prompt_eval_count')} tokens of {_PROBE!r}, and its llama-server {len(tokens)}"
        )
    steps = reply.get("logprobs") or []
    if steps:  # the model may end the text, or begin with half a character: Ollama then tells nothing
        top = [float(entry["logprob"]) for entry in steps[0]["top_logprobs"]]
        other = runner.next_tokens(tokens, GREEDY_TOP, fresh=True).values[0]
        if not np.allclose(top, other, rtol=0, atol=_AGREE):
            raise CollabError(f"Ollama's API gives log-probabilities {top}, and its llama-server {other.tolist()}")


class OllamaSession(Session):
    """Gives the most probable tokens. ``vocabulary``: rows of the embedding; ``ctx`` as it was asked for."""

    def __init__(self, runner: LlamaServer, vocabulary: int, ctx: int) -> None:
        self._runner, self._vocabulary, self._ctx = runner, vocabulary, ctx

    def logits(self, tokens: Sequence[int], *, batch: int | None = None) -> F32:
        """Log-probabilities of all tokens: logits up to a constant at each position."""
        return self.logits_at(tokens, range(len(tokens)), batch=batch)

    def logits_at(self, tokens: Sequence[int], positions: Sequence[int], *, batch: int | None = None) -> F32:
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
