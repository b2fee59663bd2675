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
from collab_ollama.targets.ollama_session import GREEDY_TOP, OllamaSession
from collab_plugin import (
    CollabError,
    Device,
    LoadOptions,
    NotOfferedError,
    Session,
    Target,
    TargetInfo,
    TargetProvider,
    open_gguf,
    read_placement,
)

if TYPE_CHECKING:
    from collab_ollama.server.client import Client
    from collab_ollama.server.llama_server import LlamaServer
    from collab_ollama.server.server_process import Server

NAME = "ollama"
MODEL = "collab-verify:latest"
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

    places = True

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="collab-ollama-")
        self._created: Path | None = None

    @contextmanager
    def load(self, artifact: Path, options: LoadOptions) -> Iterator[Session]:
        from collab_ollama.server.llama_server import LlamaServer
        from collab_ollama.server.load_model import check_placed
        from collab_ollama.server.own_server import create_model, own_server
        from collab_ollama.server.placement_environment import environment_of

        if options.kv_type not in _CACHES:
            raise NotOfferedError(f"Ollama has no cache of type {options.kv_type}")
        placement = None if options.placement is None else read_placement(options.placement)
        told = {} if placement is None else environment_of(placement)
        with ExitStack() as stack:
            cache = {"OLLAMA_KV_CACHE_TYPE": _CACHES[options.kv_type]}
            server, client = stack.enter_context(own_server(Path(self._folder.name), {**cache, **told}))
            if self._created != artifact:
                create_model(artifact, MODEL, client, Path(self._folder.name))
                self._created = artifact
            settings = {"num_ctx": options.ctx, "num_thread": options.threads, "temperature": 0, "seed": 0}
            client.generate({"model": MODEL, "keep_alive": -1, "options": settings})
            if placement is not None:
                check_placed(server, placement, told)
            _refuse_elsewhere(client, _wait_for_devices(server))
            port = runner_port(server.log.read_text(errors="replace"))
            if port is None:
                raise CollabError(f"Ollama's log tells of no llama-server: {server.last_words()}")
            runner = stack.enter_context(closing(LlamaServer(port)))
            _refuse_other_answers(client, runner, settings)
            yield OllamaSession(runner, _vocabulary(artifact), options.ctx)


def _vocabulary(artifact: Path) -> int:
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
