"""`calibrate`: which experts text uses, and the importance matrix."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from collab_plugin.api.arguments import AnyPath, Model, at_least, engine_of, opened, threads_of, windows_of
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.checkpoint.trained_context import window_note
from collab_plugin.compression.as_gguf import runnable
from collab_plugin.compression.proxy import as_proxy, proxy_type
from collab_plugin.engines.ability import check_able, check_reads
from collab_plugin.engines.bytes_read import bytes_read
from collab_plugin.engines.engine import Engine
from collab_plugin.engines.unfinished_calibration import UNFINISHED
from collab_plugin.formats.output_path import check_output
from collab_plugin.plugins.manager import first_kernels
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import write_stats


def calibrate(
    model: Model,
    *,
    texts: AnyPath | Sequence[AnyPath],
    ctx: int = 512,
    chunks: int | None = None,
    seed: int = 0,
    proxy: str | None = None,
    ubatch: int | None = None,
    trace: AnyPath | None = None,
    out: AnyPath | None = None,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
    progress: OnProgress = silent,
) -> Stats:
    """Measure which experts ``texts`` use, and the importance matrix, in one pass.

    ``model`` may be any copy, a quantized one too: statistics of one serve all. Texts are files of UTF-8 text, JSON
    lines or Parquet (docs/calibrate.md), with a weight behind a colon where wanted (``"code.jsonl:2"``); chats get the
    model's chat template. They run in windows of ``ctx`` tokens, at most ``chunks`` windows of each (None: all), drawn
    with ``seed``. Do not calibrate on text that you evaluate on.
    ``proxy``: a type such as Q4_K; the model is then run as a copy with every matrix at that type, which is kept in the
    cache folder, for models larger than memory. ``ubatch``: tokens that run at a time, in whole windows (None: one
    window); their logits take 4 bytes x tokens x vocabulary.
    ``trace``: also write which experts each token chose there (docs/formats/trace.md), for `place`.
    ``out``: also write the stats there; meanwhile what was done is kept beside it, every five minutes (vLLM: half a
    minute) or less often where that takes long, and the same call goes on there after a stop.
    ``warn`` gets one sentence where windows are longer than what the model was trained for.
    `write_stats` keeps the result in a file that is also an imatrix for llama-quantize.

    Example: ``cp.write_stats("stats.gguf", cp.calibrate("DeepSeek-V3/", texts=["prose.txt", "code.txt"]))``
    """
    chosen, windows = engine_of(engine), windows_of(texts, ctx, chunks, seed)
    if ubatch is not None:
        at_least("ubatch", ubatch, ctx)
        windows = dataclasses.replace(windows, together=ubatch // ctx)
    if trace is not None:
        check_able(chosen, "trace")
    unfinished = None if out is None else Path(out).with_name(Path(out).name + UNFINISHED)
    if out is not None:
        check_output(Path(out))
    windows = dataclasses.replace(windows, unfinished=unfinished)
    checkpoint = opened(model)
    if note := window_note(checkpoint, ctx):
        warn(note)
    topology_of(checkpoint)  # a model without experts is refused before it is run
    if proxy is None:
        runs = runnable(chosen, "calibrate", checkpoint, threads_of(threads), progress)
    else:
        kind = proxy_type(proxy)
        check_able(chosen, "calibrate")
        check_reads(chosen, "gguf", "`proxy`, which makes a GGUF,")
        chosen.check_installed()
        runs = as_proxy(checkpoint, kind, first_kernels(), threads_of(threads), progress)
    with track(progress, "calibrating", unit="tokens", read=bytes_read()) as advance:
        if trace is None:
            stats = chosen.calibrate(runs, windows, threads=threads_of(threads), progress=advance)
        else:
            stats = chosen.trace(runs, windows, out=Path(trace), threads=threads_of(threads), progress=advance)
    stats = dataclasses.replace(stats, model_id=model_id(checkpoint), seed=windows.drawn)
    if out is not None and unfinished is not None:
        write_stats(out, stats)
        unfinished.unlink(missing_ok=True)
    return stats
