"""Ollama as an engine: it generates.

Its interface gives no more of what engines do. Log-probabilities come with generated tokens alone, 20 at most and
without token ids, so there is neither a perplexity nor a KL divergence of a text (`collab-plugin ollama evaluate` has
what can be had: the next token's likeliest after prefixes), and no server of `Served`'s kind: that takes token ids and
tells the log-probability of each of a prompt. Routing is not shown, so it cannot calibrate.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from collab_ollama.ollama_program import find_ollama
from collab_plugin.engines.engine import Ability, Decoding, Engine
from collab_plugin.engines.results import Generation
from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import Placement

MODEL = "collab-run:latest"
NOWHERE = "127.0.0.1:9"
"""No server answers there: the program then tells its own version, not a running server's."""
_PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
"""Nothing but the temperature forms the distribution, as with other engines."""


class OllamaEngine(Engine):
    """A server of its own each time, with the model hard-linked into a models folder beside it: the user's server and
    models stay as they are."""

    name = "ollama"
    abilities: ClassVar[frozenset[Ability]] = frozenset({"generate"})
    reads: ClassVar[tuple[str, ...]] = ("gguf",)

    def check_installed(self) -> None:
        find_ollama()

    def honours(self, placement: Placement) -> tuple[str, ...]:
        how = (
            "nothing is set: its llama.cpp fits the model to the memory that is free (--fit)"
            if placement.tensors.fit
            else "whole tensors, by `ollama serve --placement`, for every model of that server; on one GPU"
        )
        return (how, "disk: as llama.cpp, where the model has `use_mmap`")

    def version(self) -> str:
        done = subprocess.run(
            [find_ollama(), "--version"],
            env=os.environ | {"OLLAMA_HOST": NOWHERE},
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"client version is (\S+)", done.stdout + done.stderr)
        if found is None:
            raise CollabError(f"{find_ollama()} does not tell its version: is it Ollama's program?")
        return f"Ollama {found[1]}"

    def generate(
        self, model: Path, prompt: str, decoding: Decoding, *, threads: int, write: Callable[[str], None]
    ) -> Generation:
        """The prompt is continued as it is, without a chat template; a context longer than the model's is cut to it.

        Where prompt and new tokens do not fit the context, fewer are made.
        """
        from collab_ollama.server.own_server import create_model, own_server

        if not prompt:
            raise CollabError("the `prompt` is empty")
        pieces: list[str] = []
        last: dict[str, Any] = {}
        with (
            tempfile.TemporaryDirectory(prefix=".collab-ollama-", dir=_beside(model)) as folder,
            own_server(Path(folder), {}) as (_, client),
        ):
            create_model(model, MODEL, client, Path(folder))
            for event in client.stream(_request(prompt, decoding, threads)):
                last = dict(event)
                if piece := event.get("response"):
                    pieces.append(piece)
                    write(piece)
        return Generation(
            text="".join(pieces),
            prompt_tokens=int(last.get("prompt_eval_count", 0)),
            tokens=int(last.get("eval_count", 0)),
            prompt_tokens_per_second=_rate(last, "prompt_eval"),
            tokens_per_second=_rate(last, "eval"),
        )


def _beside(model: Path) -> Path | None:
    """Where the models folder is made: on the model's disk, so that it can be linked; None for the usual place where
    that folder is not ours to write."""
    return model.resolve().parent if os.access(model.resolve().parent, os.W_OK) else None


def _request(prompt: str, decoding: Decoding, threads: int) -> dict[str, Any]:
    options = {
        "temperature": decoding.temperature,
        "seed": decoding.seed,
        "num_predict": decoding.max_tokens,
        "num_ctx": decoding.ctx,
        "num_thread": threads,
    }
    # Neither a prompt cut at its front, nor a context that forgets while text is made.
    whole = {"truncate": False, "shift": False}
    return {"model": MODEL, "prompt": prompt, "raw": True, **whole, "options": {**_PLAIN, **options}}


def _rate(event: dict[str, Any], what: str) -> float:
    """Tokens a second; Ollama's durations are in nanoseconds."""
    return float(event.get(f"{what}_count", 0) / max(event.get(f"{what}_duration", 0) / 1e9, 1e-9))
