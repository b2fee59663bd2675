"""`run`: generate text."""

from __future__ import annotations

from collections.abc import Callable

from collab_plugin.api.arguments import Model, at_least, engine_of, opened, threads_of
from collab_plugin.compression.as_gguf import runnable
from collab_plugin.engines.engine import Decoding, Engine
from collab_plugin.engines.results import Generation
from collab_plugin.progress import OnProgress, silent


def _nowhere(piece: str) -> None:
    """Where generated text goes that nobody watches."""


def run(
    model: Model,
    prompt: str,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    ctx: int = 2048,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    write: Callable[[str], None] = _nowhere,
    progress: OnProgress = silent,
) -> Generation:
    """Continue ``prompt`` by at most ``max_tokens`` tokens and say how fast.

    ``temperature`` 0 is greedy, above it ``seed`` decides. ``ctx``: tokens of context, prompt and new ones together.
    ``write`` gets each piece of text as it comes.

    Example: ``cp.run("out.gguf", "Once upon a time").text``
    """
    for name, value, least in (("max_tokens", max_tokens, 1), ("temperature", temperature, 0), ("ctx", ctx, 16)):
        at_least(name, value, least)
    chosen = engine_of(engine)
    runs = runnable(chosen, "generate", opened(model), threads_of(threads), progress)
    return chosen.generate(
        runs, prompt, Decoding(max_tokens, temperature, seed, ctx), threads=threads_of(threads), write=write
    )
