"""Behaviour level: what may not change a result, or only so much.

- ``behaviour.batch_N``: logits of a prompt computed N tokens at a time against all at once, NMSE; N in `BATCHES`.
- ``behaviour.context_boundary``: a prompt in a context of exactly its length against an ample one, NMSE.
- ``behaviour.kv_f16``, ``behaviour.kv_q8_0``: mean KL divergence from the pack with that key-value cache.
- ``behaviour.repeat``: values that differ in their bits between two runs on this device.

Batches of 512 need a prompt longer than that, the others take the shortest of at least `SOME` tokens. The short
form leaves batches of 64 and 512 out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.measures import kld, nmse
from collab_conformance.pack.pack_document import Prompt
from collab_plugin.engines.target import F32, NotOfferedError

BATCHES = (1, 7, 64, 512)
SHORT_BATCHES = (1, 7)
SOME = 64
KV_TYPES = ("f16", "q8_0")


def checks(running: Running) -> list[Planned]:
    """See the module. Those that need the artifact loaded with other options come last."""
    figures: dict[str, Callable[[], float]] = {}
    for size in SHORT_BATCHES if running.short else BATCHES:
        figures[f"behaviour.batch_{size}"] = partial(_batch, running, size)
    figures["behaviour.repeat"] = partial(_repeat, running)
    for kind in KV_TYPES:
        figures[f"behaviour.kv_{kind}"] = partial(_kv, running, kind)
    figures["behaviour.context_boundary"] = partial(_boundary, running)
    return [Planned("behaviour", name, running.subject.name, measure) for name, measure in figures.items()]


def _prompt(running: Running, longer_than: int) -> Prompt:
    """The shortest prompt of the pack, short form or not, that is longer."""
    fit = [prompt for prompt in running.pack.document.prompts if len(prompt.tokens) > longer_than]
    if not fit:
        raise NotOfferedError(f"the pack has no prompt of more than {longer_than} tokens")
    return min(fit, key=lambda prompt: len(prompt.tokens))


def _batch(running: Running, size: int) -> float:
    prompt = _prompt(running, max(size, SOME - 1))
    whole = running.logits(prompt)
    return nmse(whole, running.logits_of(running.session(), prompt, batch=size))


def _repeat(running: Running) -> float:
    prompt = _prompt(running, SOME - 1)
    first, second = (running.logits_of(running.session(), prompt) for _ in range(2))
    return float((_bits(first) != _bits(second)).sum())


def _bits(values: F32) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def _kv(running: Running, kind: str) -> float:
    session = running.session(kv_type=kind)
    pairs = [(recording.logits, running.logits_of(session, prompt)) for prompt, recording in running.prompts]
    expected, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(kld(expected, found).mean())


def _boundary(running: Running) -> float:
    prompt = _prompt(running, SOME - 1)
    whole = running.logits(prompt)
    return nmse(whole, running.logits_of(running.session(ctx=len(prompt.tokens)), prompt))
