"""Record a pack: run the prompts through the reference, or through an engine that is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_conformance.measures import log_softmax
from collab_conformance.pack.pack_artifact import describe
from collab_conformance.pack.pack_document import (
    GREEDY_TOP,
    TOP,
    Artifact,
    Pack,
    PackDocument,
    Prompt,
    Recorder,
    Recording,
    Routes,
)
from collab_conformance.pack.pack_file import write_pack
from collab_conformance.pack.scale_directions import record_scales
from collab_conformance.reference.run_reference import ReferenceModel, RoutingLayer
from collab_plugin.engines.target import LogProbabilities
from collab_plugin.errors import CollabError
from collab_plugin.progress import Advance, untold

Logits = NDArray[np.floating[Any]]
Record = Callable[[Sequence[int]], Logits]
"""Logits [tokens, vocabulary] after each token of a fresh sequence, such as a `Session.logits`."""
_Run = Callable[[Sequence[int]], tuple[Logits, Sequence[RoutingLayer]]]


def make_pack(
    artifact: Path,
    prompts: Sequence[Prompt],
    out: Path,
    record: Record | None = None,
    *,
    recorder: Recorder | None = None,
    report: Advance = untold,
) -> Pack:
    """Record ``prompts`` on ``artifact`` and write the pack into the folder ``out``.

    The reference computes it, and then the pack has routing and scale directions; or ``record``, which
    ``recorder`` names. ``report`` in tokens. CollabError where the reference cannot be had (torch,
    architecture), ids out of the vocabulary, logits that are not finite.
    """
    if record is None:
        reference = ReferenceModel(artifact)
        recorder = recorder or Recorder("reference", "float64 reference", "cpu", reference.versions())

        def run(tokens: Sequence[int]) -> tuple[Logits, Sequence[RoutingLayer]]:
            found = reference.run(tokens)
            return found.logits, tuple(found.routing.values())
    else:
        if recorder is None:
            raise ValueError("a pack must say what recorded it")

        def run(tokens: Sequence[int]) -> tuple[Logits, Sequence[RoutingLayer]]:
            return record(tokens), ()

    described = describe(artifact)
    _refuse_ids(described, prompts)
    routing = record is None and bool(described.moe_layers)
    document = PackDocument(described, recorder, routing, tuple(prompts), "0" * 64, None)
    recordings = _record(described, prompts, run, report)
    scales = None if record else record_scales(artifact, [prompt.tokens for prompt in prompts], report)
    pack = Pack(document, recordings, scales)
    return replace(pack, document=write_pack(out, pack))


def _refuse_ids(artifact: Artifact, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if not prompt.tokens or not all(0 <= token < artifact.vocabulary for token in prompt.tokens):
            raise CollabError(
                f"prompt {prompt.name!r} has an id that {artifact.name}'s vocabulary of {artifact.vocabulary} lacks"
            )


def _record(artifact: Artifact, prompts: Sequence[Prompt], run: _Run, report: Advance) -> tuple[Recording, ...]:
    total = sum(len(p.tokens) + sum(len(p.tokens) + step for step in range(p.greedy_steps)) for p in prompts)
    done, found = 0, []

    def counted(tokens: Sequence[int]) -> tuple[Logits, Sequence[RoutingLayer]]:
        nonlocal done
        logits, layers = run(tokens)
        if logits.shape != (len(tokens), artifact.vocabulary) or not np.isfinite(logits).all():
            raise CollabError(
                f"logits of {artifact.name} are {logits.shape} or not finite: nothing can be held to them"
            )
        done += len(tokens)
        report(done, total)
        return logits, layers

    for prompt in prompts:
        logits, layers = counted(prompt.tokens)
        found.append(
            Recording(
                top=top_of(logits, TOP),
                logits=logits[list(prompt.positions)].astype(np.float32),
                routes=_routes(layers),
                greedy=_continue(prompt, counted) if prompt.greedy_steps else None,
            )
        )
    return tuple(found)


def top_of(logits: Logits, n: int) -> LogProbabilities:
    """The ``n`` most probable tokens of logits [tokens, vocabulary], equal ones by ascending id."""
    values = log_softmax(logits)
    ids = np.argsort(-values, axis=-1, kind="stable")[:, :n]
    return LogProbabilities(ids.astype(np.int32), np.take_along_axis(values, ids, -1).astype(np.float32))


def _routes(layers: Sequence[RoutingLayer]) -> Routes | None:
    if not layers:
        return None
    ids, margins = np.stack([layer.ids for layer in layers]), np.stack([layer.margins for layer in layers])
    return Routes(ids, margins.astype(np.float32))


def _continue(prompt: Prompt, run: _Run) -> LogProbabilities:
    """The greedy continuation: the whole sequence anew at each step, which needs no cache to be right."""
    tokens, steps = list(prompt.tokens), []
    for _ in range(prompt.greedy_steps):
        steps.append(top_of(run(tokens)[0][-1:], GREEDY_TOP))
        tokens.append(int(steps[-1].ids[0, 0]))
    return LogProbabilities(np.concatenate([s.ids for s in steps]), np.concatenate([s.values for s in steps]))
