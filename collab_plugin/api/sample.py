"""`sample`: what experts compute on some text, for plans that repair."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from collab_plugin.api.arguments import AnyPath, Model, engine_of, opened, threads_of, windows_of
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.checkpoint.trained_context import window_note
from collab_plugin.compression.as_gguf import runnable
from collab_plugin.engines.engine import Engine
from collab_plugin.formats.output_path import check_output
from collab_plugin.progress import OnProgress, silent, track


def sample(
    model: Model,
    out: AnyPath,
    *,
    texts: AnyPath | Sequence[AnyPath],
    ctx: int = 512,
    chunks: int | None = 8,
    seed: int = 0,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
    progress: OnProgress = silent,
) -> None:
    """Write to ``out`` what goes into and comes out of the experts of each layer, for every token of ``texts``.

    With it a plan repairs what pruning breaks. Each layer takes 8 bytes × the stream's width a token. Texts are
    files as for `calibrate`, in windows of ``ctx`` tokens, at most ``chunks`` windows of each (None: all), drawn with
    ``seed``. Sample the original or a copy of high
    precision, and not the text that you evaluate on. ``warn``: as for `calibrate`.

    Example: ``cp.sample("DeepSeek-V3/", "samples.gguf", texts=["prose.txt", "code.txt"])``
    """
    chosen, windows, path = engine_of(engine), windows_of(texts, ctx, chunks, seed), Path(out)
    check_output(path)
    checkpoint = opened(model)
    if note := window_note(checkpoint, ctx):
        warn(note)
    topology_of(checkpoint)  # a model without experts is refused before it is run
    runs = runnable(chosen, "sample", checkpoint, threads_of(threads), progress)
    with track(progress, "sampling", unit="tokens") as advance:
        chosen.sample(runs, windows, out=path, threads=threads_of(threads), progress=advance)
