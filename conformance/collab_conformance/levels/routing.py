"""Routing level: experts chosen by every router for every token, equal to the pack's.

A choice whose margin in the reference is below `NEAR_TIE` of the layer's median margin is a near-tie: another
choice there is counted apart, and so is what follows it at that token (measures.routing_agreement). Other tokens
attend to that one, so that rounding also moves a few choices that were no near-ties: limits allow for some. The
short form leaves long prompts out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.measures import RoutingAgreement, routing_agreement
from collab_conformance.pack.pack_document import Prompt, Recording
from collab_plugin.engines.target import F32, NotOfferedError

NEAR_TIE = 0.25
"""Margins of a layer are of one size, and models differ tenfold: of tiny-qwen3moe's 0.004 at the median, of
tiny-deepseek-v3's 0.026 to 0.046. Measured 2026-11-24 on llamacpp:cpu: nine of ten choices that rounding changed
had a margin below 0.23 of the median, at Q4_K and Q8_0."""


def checks(running: Running) -> list[Planned]:
    """``routing.different``: share of decisions that differ and that no near-tie excuses. ``routing.near_ties``:
    share that differ at a near-tie; ``routing.downstream``: share that differ after one."""
    parts: dict[str, Callable[[RoutingAgreement], int]] = {
        "routing.different": lambda a: a.different,
        "routing.near_ties": lambda a: a.near_ties,
        "routing.downstream": lambda a: a.downstream,
    }
    return [
        Planned("routing", name, running.subject.name, partial(_share, running, part)) for name, part in parts.items()
    ]


def _share(running: Running, part: Callable[[RoutingAgreement], int]) -> float:
    agreements = running.kept("agreements", lambda: [_agreement(running, *pair) for pair in running.prompts])
    return sum(map(part, agreements)) / sum(a.decisions for a in agreements)


def _agreement(running: Running, prompt: Prompt, recording: Recording) -> RoutingAgreement:
    if recording.routes is None:
        raise NotOfferedError("the pack has no routing: what recorded it does not show its own")
    by_layer = {found.layer: found.ids for found in running.routing(prompt)}
    layers = running.pack.document.artifact.moe_layers
    missing = sorted(set(layers) - set(by_layer))
    if missing:
        raise ValueError(f"the engine showed no routing of layer {missing[0]}")
    ids = np.stack([by_layer[layer] for layer in layers])
    if ids.shape[-1] != recording.routes.ids.shape[-1]:
        raise ValueError(f"the engine used {ids.shape[-1]} experts a token, the pack {recording.routes.ids.shape[-1]}")
    return routing_agreement(recording.routes.ids, _margins(running, recording), ids, NEAR_TIE)


def _margins(running: Running, recording: Recording) -> F32:
    """Of the median margin of their layer over all prompts, f32[layers, tokens]; layers that leave nothing out
    have no median, and no choice."""
    every = np.concatenate([r.routes.margins for r in running.pack.recordings if r.routes is not None], axis=1)
    assert recording.routes is not None
    relative: F32 = recording.routes.margins / np.median(every, axis=1, keepdims=True)
    return relative
