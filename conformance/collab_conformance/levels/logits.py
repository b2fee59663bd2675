"""Logits level: next-token logits at the pack's positions, all tokens of a prompt in one batch.

Engines that give logits: ``logits.nmse``, ``logits.mean_kld``, ``logits.kld_p99``, ``logits.same_top1``, over all
positions of all prompts; ``logits.scale``: how far from 1 the factor is that fits the logits best to the
reference's. Others, of the tokens in both sides' top lists and the rest as one (a lower bound): ``logits.mean_kld``,
``logits.kld_p99``, ``logits.same_top1``. The short form takes the first two prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.measures import F64, kld, kld_of_top, nmse, same_top1
from collab_conformance.pack.document import TOP
from collab_plugin.target import F32, NotOfferedError


@dataclass(frozen=True)
class Divergences:
    """``kld`` f64[positions] in nats, ``same`` the share with one most probable token."""

    kld: F64
    same: float


def checks(running: Running) -> list[Planned]:
    """See the module."""
    figures: dict[str, Callable[[], float]] = {
        "logits.nmse": lambda: nmse(*_both(running)),
        "logits.scale": lambda: _scale(running),
        "logits.mean_kld": lambda: float(_divergences(running).kld.mean()),
        "logits.kld_p99": lambda: float(np.quantile(_divergences(running).kld, 0.99)),
        "logits.same_top1": lambda: _divergences(running).same,
    }
    return [Planned("logits", name, running.subject.name, measure) for name, measure in figures.items()]


def _both(running: Running) -> tuple[F32, F32]:
    """The pack's logits and the target's, f32[positions of all prompts, vocabulary] each."""

    def make() -> tuple[F32, F32]:
        expected = np.concatenate([recording.logits for _, recording in running.prompts])
        return expected, np.concatenate([running.logits(prompt) for prompt, _ in running.prompts])

    return running.kept("both logits", make)


def _scale(running: Running) -> float:
    """Each position's logits less their mean, which no probability depends on."""
    expected, found = (x - x.mean(-1, keepdims=True, dtype=np.float64) for x in _both(running))
    return abs(float((expected * found).sum() / np.square(expected).sum()) - 1.0)


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
