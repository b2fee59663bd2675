"""`run`: generate text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from collab_plugin.api.arguments import AnyPath, Model, at_least, engine_of, opened, threads_of
from collab_plugin.compression.as_gguf import runnable
from collab_plugin.engines.ability import check_able
from collab_plugin.engines.engine import Decoding, Engine
from collab_plugin.engines.results import Generation
from collab_plugin.placement.machine_profile import SpeedRun, add_run
from collab_plugin.placement.placement import Placement
from collab_plugin.placement.placement_file import read_placement
from collab_plugin.progress import OnProgress, silent

LEAST_TOKENS = 16
"""A run of fewer tokens says little of speed."""


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
    placement: Placement | AnyPath | None = None,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    write: Callable[[str], None] = _nowhere,
    progress: OnProgress = silent,
) -> Generation:
    """Continue ``prompt`` by at most ``max_tokens`` tokens and say how fast.

    ``temperature`` 0 is greedy, above it ``seed`` decides. ``ctx``: tokens of context, prompt and new ones together.
    ``placement``: what `place` made, or its file; how far its forecast was off is remembered for later ones.
    ``write`` gets each piece of text as it comes.

    Example: ``cp.run("out.gguf", "Once upon a time").text``
    """
    for name, value, least in (("max_tokens", max_tokens, 1), ("temperature", temperature, 0), ("ctx", ctx, 16)):
        at_least(name, value, least)
    chosen = engine_of(engine)
    placed = read_placement(Path(placement)) if isinstance(placement, (str, os.PathLike)) else placement
    if placed is not None:
        check_able(chosen, "place")
    runs = runnable(chosen, "generate", opened(model), threads_of(threads), progress)
    decoding = Decoding(max_tokens, temperature, seed, ctx)
    if placed is None:
        return chosen.generate(runs, prompt, decoding, threads=threads_of(threads), write=write)
    made = chosen.place(runs, prompt, decoding, placed, threads=threads_of(threads), write=write)
    if made.tokens >= LEAST_TOKENS:
        _remember(placed, made.tokens_per_second)
    return made


def _remember(placement: Placement, actual: float) -> None:
    """How the forecast did, where it was one for this machine: all that is read lies in memories measured here."""
    speed, used = placement.tensors.speed, [t for t in placement.tiers if placement.tensors.reads.get(t.name)]
    if speed is not None and all(tier.measured and tier.kind != "disk" for tier in used):
        add_run(SpeedRun(placement.artifact.name, speed.expected, actual))
