"""Routing level: experts chosen by every router for every token, equal to the pack's.

A choice whose margin in the reference is below `NEAR_TIE` is a near-tie: another choice there is counted apart,
and so is what follows it at that token (measures.routing_agreement). The short form leaves long prompts out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.measures import RoutingAgreement, routing_agreement
from collab_conformance.pack.document import Prompt, Recording
from collab_plugin.target import NotOfferedError

NEAR_TIE = 0.005
"""Selection score between the last expert chosen and the first left out; scores are probabilities or sigmoids,
with the router's bias. From `measure_limits.py`: see `routing.different` in limits.json."""


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
    return routing_agreement(recording.routes.ids, recording.routes.margins, ids, NEAR_TIE)
