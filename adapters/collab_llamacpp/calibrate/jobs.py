"""What the child process does: calibrate, evaluate, generate. Each job returns plain values or arrays."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.collector import Collector
from collab_llamacpp.calibrate.original_logits import Original, Running, Written
from collab_llamacpp.native.model import Session
from collab_llamacpp.native.sampling import piece, sampler
from collab_plugin.engines.engine import REFERENCE
from collab_plugin.errors import CollabError
from collab_plugin.stats.text_overlap import decode_sketch, overlap, sketch

Progress = Callable[[int, int], None]
Arrays = dict[str, NDArray[Any]]


def calibrate(job: dict[str, Any], progress: Progress) -> Arrays:
    """All windows through the model with every logit on: without, the last layer sees one token a batch."""
    ctx = job["ctx"]
    collector = Collector(job["experts"], job["architecture"] == "llama4")
    with Session(
        Path(job["model"]),
        ctx=ctx,
        threads=job["threads"],
        callback=collector.callback,
        kv_type=job.get("kv_type", "f16"),
    ) as session:
        windows = session.windows([Path(t) for t in job["texts"]], ctx, job["chunks"])
        for index, window in enumerate(windows):
            session.clear()
            session.decode(window, 0)
            if collector.error is not None:
                break
            progress((index + 1) * ctx, len(windows) * ctx)
        llama.llama_synchronize(session.ctx)
    collector.finish()
    arrays: Arrays = {"tokens": np.array(len(windows) * ctx), "sketch": sketch(np.concatenate(windows))}
    for layer, count in collector.counts.items():
        arrays[f"count.{layer}"] = count
        arrays[f"weights.{layer}"] = collector.weights[layer]
        arrays[f"reap.{layer}"] = collector.reap[layer]
        arrays[f"layer_tokens.{layer}"] = np.array(collector.tokens[layer])
    for name, sums in collector.sums.items():
        arrays[f"sums.{name}"] = sums.astype(np.float32)
        arrays[f"seen.{name}"] = collector.seen[name].astype(np.float32)
    return arrays


def evaluate(job: dict[str, Any], progress: Progress) -> Arrays:
    """Figures of both models on the same windows; chunking of llama-perplexity (perplexity.cpp:540)."""
    ctx, first = job["ctx"], job["ctx"] // 2
    nll: list[NDArray[np.float64]] = []
    nll_original: list[NDArray[np.float64]] = []
    kld: list[NDArray[np.float64]] = []
    same: list[NDArray[np.bool_]] = []
    with ExitStack() as stack:
        model = stack.enter_context(Session(Path(job["model"]), ctx=ctx, threads=job["threads"]))
        windows = model.windows([Path(t) for t in job["texts"]], ctx, job["chunks"])
        original = _original(job, stack)
        if model.n_vocab != original.n_vocab or not original.same_windows(windows):
            raise CollabError(f"{job['model']} and {job['original']} tokenize the text differently: not the same model")
        for index, window in enumerate(windows):
            figures = compare(model.scored(window), original.logits(index), window[first + 1 :])
            nll.append(figures[0])
            nll_original.append(figures[1])
            kld.append(figures[2])
            same.append(figures[3])
            progress((index + 1) * ctx, len(windows) * ctx)
    arrays: Arrays = {
        "nll": np.concatenate(nll),
        "nll_original": np.concatenate(nll_original),
        "kld": np.concatenate(kld),
        "same": np.concatenate(same),
    }
    if job.get("ngrams"):
        arrays["overlap"] = np.array(overlap(decode_sketch(job["ngrams"]), np.concatenate(windows)))
    return arrays


def _original(job: dict[str, Any], stack: ExitStack) -> Original:
    path = Path(job["original"])
    if path.suffix == REFERENCE:
        return Written(path)
    session = stack.enter_context(Session(path, ctx=job["ctx"], threads=job["threads"]))
    return Running(session, session.windows([Path(t) for t in job["texts"]], job["ctx"], job["chunks"]))


def reference(job: dict[str, Any], progress: Progress) -> Arrays:
    """Write the original's logits as job["out"]: a .npy of f32[windows, n, V], its windows beside it."""
    ctx, out = job["ctx"], Path(job["out"])
    with Session(Path(job["original"]), ctx=ctx, threads=job["threads"]) as session:
        windows = session.windows([Path(t) for t in job["texts"]], ctx, job["chunks"])
        shape = (len(windows), ctx - 1 - ctx // 2, session.n_vocab)
        store = np.lib.format.open_memmap(out, "w+", np.float32, shape)
        for index, window in enumerate(windows):
            store[index] = session.scored(window)
            progress((index + 1) * ctx, len(windows) * ctx)
        store.flush()
        np.save(out.with_suffix(".windows.npy"), np.stack(windows))
    return {}


def compare(
    logits: NDArray[np.float32], reference: NDArray[np.float32], targets: NDArray[np.int64], block: int = 32
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Per position: -log p of the target under both, KL(reference || model) in nats, same top-1.

    logits, reference f32[n, V]; float64 inside, ``block`` rows at a time to bound memory.
    """
    parts = []
    for start in range(0, len(targets), block):
        log_p = log_softmax(logits[start : start + block])
        log_q = log_softmax(reference[start : start + block])
        at = np.arange(len(log_p)), targets[start : start + block]
        divergence = (np.exp(log_q) * (log_q - log_p)).sum(-1)
        parts.append((-log_p[at], -log_q[at], divergence, log_p.argmax(-1) == log_q.argmax(-1)))
    nll, other, kld, same = (np.concatenate(column) for column in zip(*parts, strict=True))
    return nll, other, kld, same


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """f32[n, V] to f64[n, V]."""
    x = logits.astype(np.float64)
    if not np.isfinite(x).all():
        raise CollabError("the model's logits are not finite: the file is damaged or was quantized too hard")
    x -= x.max(-1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def generate(job: dict[str, Any], progress: Progress) -> Arrays:
    """Write pieces of text to stdout as JSON lines; return counts and seconds."""
    with Session(Path(job["model"]), ctx=job["ctx"], threads=job["threads"]) as session:
        tokens = session.tokenize(job["prompt"], special=True)
        if not len(tokens):
            raise CollabError("the prompt is empty")
        if len(tokens) + job["max_tokens"] > job["ctx"]:
            raise CollabError(
                f"{len(tokens)} prompt tokens and {job['max_tokens']} new ones exceed the context of "
                f"{job['ctx']}; raise `ctx`"
            )
        chain = sampler(job["temperature"], job["seed"])
        start = time.perf_counter()
        session.decode(tokens, len(tokens) - 1)
        llama.llama_synchronize(session.ctx)
        prompt_seconds, start = time.perf_counter() - start, time.perf_counter()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        made = 0
        while made < job["max_tokens"]:
            token = llama.llama_sampler_sample(chain, session.ctx, -1)
            if llama.llama_vocab_is_eog(session.vocab, token):
                break
            made += 1
            print(json.dumps({"text": decoder.decode(piece(session, token))}), flush=True)
            session.decode([token], 0, len(tokens) + made - 1)
        llama.llama_synchronize(session.ctx)
        seconds = time.perf_counter() - start
        llama.llama_sampler_free(chain)
    figures = [len(tokens), made, prompt_seconds, seconds]
    return {"figures": np.array(figures, np.float64)}


JOBS: dict[str, Callable[[dict[str, Any], Progress], Arrays]] = {
    "calibrate": calibrate,
    "reference": reference,
    "evaluate": evaluate,
    "generate": generate,
}
