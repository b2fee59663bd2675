"""Logits level: next-token logits at the pack's positions, all tokens of a prompt in one batch.

Engines that give logits, over all positions of all prompts, less each position's mean, which no probability
depends on:
- ``logits.nmse``; ``logits.nmse_p50``, the median of the positions' own, which a few where a router chose otherwise
  do not move;
- ``logits.scale``: how far from 1 the factor is that fits the logits best to the reference's;
- ``logits.mean_kld``, ``logits.kld_p50``, ``logits.kld_p99`` in nats, and ``logits.same_top1``;
- in the full form, with packs that the reference recorded, ``logits.tensor_scale``: the largest relative error of a
  tensor's scale (levels/scales.py).

Engines that give the most probable tokens only: the divergences as lower bounds (tokens in both sides' lists, the
rest as one) and ``logits.same_top1``. The short form leaves long prompts out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.levels.scales_level import scale_errors, worst
from collab_conformance.measures import F64, kld, kld_of_top, nmse, same_top1
from collab_conformance.pack.pack_document import TOP
from collab_conformance.pack.scale_directions import centred
from collab_plugin.engines.target import F32, NotOfferedError


@dataclass(frozen=True)
class Divergences:
    """``kld`` f64[positions] in nats, ``same`` the share with one most probable token."""

    kld: F64
    same: float


def checks(running: Running) -> list[Planned]:
    """See the module."""
    figures: dict[str, Callable[[], float]] = {
        "logits.nmse": lambda: nmse(*(centred(x) for x in _both(running))),
        "logits.nmse_p50": lambda: _median(running),
        "logits.scale": lambda: _scale(running),
        "logits.mean_kld": lambda: float(_divergences(running).kld.mean()),
        "logits.kld_p50": lambda: float(np.median(_divergences(running).kld)),
        "logits.kld_p99": lambda: float(np.quantile(_divergences(running).kld, 0.99)),
        "logits.same_top1": lambda: _divergences(running).same,
    }
    if not running.short:
        figures["logits.tensor_scale"] = lambda: _tensor_scale(running)
    return [Planned("logits", name, running.subject.name, measure) for name, measure in figures.items()]


def _both(running: Running) -> tuple[F32, F32]:
    """The pack's logits and the target's, f32[positions of all prompts, vocabulary] each."""

    def make() -> tuple[F32, F32]:
        expected = np.concatenate([recording.logits for _, recording in running.prompts])
        return expected, np.concatenate([running.logits(prompt) for prompt, _ in running.prompts])

    return running.kept("both logits", make)


def _scale(running: Running) -> float:
    expected, found = (centred(x) for x in _both(running))
    return abs(float((expected * found).sum() / np.square(expected).sum()) - 1.0)


def _median(running: Running) -> float:
    expected, found = (centred(x) for x in _both(running))
    return float(np.median(np.square(found - expected).sum(-1) / np.square(expected).sum(-1)))


def _tensor_scale(running: Running) -> float:
    scales = running.pack.scales
    if scales is None:
        raise NotOfferedError("the pack has no scale directions: an engine recorded it")
    tokens = running.pack.document.prompts[scales.prompt].tokens
    return worst(scale_errors(scales, running.session().logits(tokens)))


def _divergences(running: Running) -> Divergences:
    def make() -> Divergences:
        try:
            expected, found = _both(running)
        except NotOfferedError:
            return _of_top(running)
        return Divergences(kld(expected, found), same_top1(expected.argmax(-1), found.argmax(-1)))

    return running.kept("divergences", make)


def _of_top(running: Running) -> Divergences:
    """At every position of every prompt, as tops are cheap to keep."""
    divergences, same = [], []
    for prompt, recording in running.prompts:
        found = running.top(prompt, TOP)
        divergences.append(kld_of_top(recording.top.ids, recording.top.values, found.ids, found.values))
        same.append(recording.top.ids[:, 0] == found.ids[:, 0])
    return Divergences(np.concatenate(divergences), float(np.concatenate(same).mean()))
