"""What the child process does: calibrate, evaluate, generate. Each job returns plain values or arrays."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.collector import Collector
from collab_llamacpp.calibrate.job_types import CalibrateJob, EvaluateJob, GenerateJob, ReferenceJob
from collab_llamacpp.calibrate.original_logits import Original, RunningOriginal
from collab_llamacpp.native.model import LoadedModel
from collab_llamacpp.native.page_hints import PageHints
from collab_llamacpp.native.sampling import piece, sampler
from collab_llamacpp.native.tensor_overrides import TensorOverrides
from collab_llamacpp.pages_policy import policy_of, read_by_every_token
from collab_plugin.checkpoint.gguf import open_gguf, shard_paths
from collab_plugin.engines.compare_logits import Comparison, scored_rows
from collab_plugin.engines.engine import REFERENCE
from collab_plugin.engines.reference_file import Reference, writing_reference
from collab_plugin.engines.unfinished_calibration import UnfinishedCalibration, calibration_key
from collab_plugin.errors import CollabError
from collab_plugin.progress import Advance, take_up
from collab_plugin.stats.text_overlap import decode_sketch, overlap, sketch

Arrays = dict[str, NDArray[Any]]


def calibrate(job: CalibrateJob, progress: Advance) -> Arrays:
    """All windows through the model with every logit on: without, the last layer sees one token a batch."""
    ctx = job.cut.ctx
    collector = Collector(job.experts, job.architecture == "llama4", job.trace)
    with LoadedModel(
        Path(job.model),
        ctx=ctx,
        threads=job.threads,
        callback=collector.callback,
        kv_type=job.kv_type,
        sequences=job.together,
    ) as session:
        windows = session.windows(job.cut)
        kept = UnfinishedCalibration(job.unfinished, _key(job, windows), job.save_seconds)
        first = kept.resume(collector)
        take_up(progress, first * ctx, len(windows) * ctx)
        for start in range(first, len(windows), job.together):
            batch = windows[start : start + job.together]
            session.decode_together([window.tolist() for window in batch])
            if collector.error is not None:
                break
            progress((start + len(batch)) * ctx, len(windows) * ctx)
            llama.llama_synchronize(session.ctx)
            kept.keep(collector, start + len(batch))
        llama.llama_synchronize(session.ctx)
    collector.finish()
    arrays: Arrays = {"tokens": np.array(len(windows) * ctx), "sketch": sketch(np.concatenate(windows))}
    for layer, count in collector.counts.items():
        arrays[f"count.{layer}"] = count
        arrays[f"weights.{layer}"] = collector.weights[layer]
        arrays[f"reap.{layer}"] = collector.reap[layer]
        arrays[f"layer_tokens.{layer}"] = np.array(collector.tokens[layer])
    for layer, ids in collector.chosen.items():
        arrays[f"chosen.{layer}"] = np.concatenate(ids)
    for (node, layer), (inverse, tokens) in collector.streams.items():
        arrays[f"stream.{node}.{layer}"] = np.array(tokens / inverse)
    for layer, (squares, tokens) in collector.gates.items():
        arrays[f"gate.{layer}"] = np.array(squares / tokens)
    for name, sums in collector.sums.items():
        arrays[f"sums.{name}"] = sums.astype(np.float32)
        arrays[f"seen.{name}"] = collector.seen[name].astype(np.float32)
        arrays[f"rounding.{name}"] = collector.rounding[name]
    return arrays


def _key(job: CalibrateJob, windows: Sequence[NDArray[np.int64]]) -> str:
    options = (job.experts, job.architecture, job.kv_type, job.together, job.trace)
    return calibration_key(f"llama.cpp {llama.__version__}", shard_paths(Path(job.model)), windows, options)


def evaluate(job: EvaluateJob, progress: Advance) -> Arrays:
    """Figures of both models on the same windows."""
    ctx = job.cut.ctx
    following = slice(scored_rows(ctx).start + 1, None)
    found = Comparison()
    with ExitStack() as stack:
        model = stack.enter_context(LoadedModel(Path(job.model), ctx=ctx, threads=job.threads))
        windows = model.windows(job.cut)
        original = _original(job, stack)
        if model.n_vocab != original.n_vocab or not original.same_windows(windows):
            raise CollabError(f"{job.model} and {job.original} tokenize the text differently: not the same model")
        for index, window in enumerate(windows):
            found.add(model.scored(window), original.logits(index), window[following])
            progress((index + 1) * ctx, len(windows) * ctx)
    arrays: Arrays = found.arrays()
    if job.ngrams:
        arrays["overlap"] = np.array(overlap(decode_sketch(job.ngrams), np.concatenate(windows)))
    return arrays


def _original(job: EvaluateJob, stack: ExitStack) -> Original:
    path = Path(job.original)
    if path.suffix == REFERENCE:
        return Reference(path)
    session = stack.enter_context(LoadedModel(path, ctx=job.cut.ctx, threads=job.threads))
    return RunningOriginal(session, session.windows(job.cut))


def reference(job: ReferenceJob, progress: Advance) -> Arrays:
    """Write the original's logits as job.out."""
    ctx = job.cut.ctx
    with LoadedModel(Path(job.original), ctx=ctx, threads=job.threads) as session:
        windows = session.windows(job.cut)
        with writing_reference(Path(job.out), windows, session.n_vocab) as store:
            for index, window in enumerate(windows):
                store.add(index, session.scored(window))
                progress((index + 1) * ctx, len(windows) * ctx)
    return {}


def generate(job: GenerateJob, write: Callable[[str], None]) -> Arrays:
    """Hand each piece of text to ``write``; return counts and seconds."""
    overrides = TensorOverrides(job.on_processor, job.on_gpu) if job.on_processor or job.on_gpu else None
    model = Path(job.model)
    hints = None
    if job.pages is not None:
        hints = PageHints(policy_of(job.pages), read_by_every_token(open_gguf(model)))
    callback = None if hints is None else hints.callback
    with LoadedModel(model, ctx=job.ctx, threads=job.threads, callback=callback, placement=overrides) as session:
        tokens = session.tokenize(job.prompt, special=True)
        if not len(tokens):
            raise CollabError("the prompt is empty")
        if len(tokens) + job.max_tokens > job.ctx:
            raise CollabError(
                f"{len(tokens)} prompt tokens and {job.max_tokens} new ones exceed the context of "
                f"{job.ctx}; raise `ctx`"
            )
        chain = sampler(job.temperature, job.seed)
        start = time.perf_counter()
        session.decode(tokens, len(tokens) - 1)
        llama.llama_synchronize(session.ctx)
        prompt_seconds, start = time.perf_counter() - start, time.perf_counter()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        made = 0
        while made < job.max_tokens:
            token = llama.llama_sampler_sample(chain, session.ctx, -1)
            if llama.llama_vocab_is_eog(session.vocab, token):
                break
            made += 1
            write(decoder.decode(piece(session, token)))
            session.decode([token], 0, len(tokens) + made - 1)
        llama.llama_synchronize(session.ctx)
        seconds = time.perf_counter() - start
        llama.llama_sampler_free(chain)
        if hints is not None:
            hints.finish()
    figures = [len(tokens), made, prompt_seconds, seconds]
    return {"figures": np.array(figures, np.float64)}
