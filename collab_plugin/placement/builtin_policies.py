"""The built-in placement policies: static ones, and those that go on choosing while the model runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collab_plugin.placement.policy import LayerUse, PlacementPolicy, PolicyParameter
from collab_plugin.placement.residencies import CountOverAge, DecayedCount, Foretold, LastUsed

DECAY = PolicyParameter(0.95, above=0, below=1)
"""Of the decays .90, .95 and .99 the best one on OLMoE's trace (docs/placement.md)."""
SEED = 0


def _most_selected(use: LayerUse, number: int) -> Sequence[int]:
    routing = use.routing
    if routing is None:
        return range(number)
    return sorted(range(use.experts), key=lambda expert: (-int(routing.count[expert]), expert))[:number]


def _where_it_is_hot(uses: Sequence[LayerUse], total: int) -> Sequence[int]:
    """The ``total`` experts of all layers that are chosen most; of equal ones those of earlier layers. As many in every
    layer where nothing is known."""
    if all(use.routing is None for use in uses):
        each, more = divmod(total, len(uses))
        return [min(each + (index < more), use.experts) for index, use in enumerate(uses)]
    heat = np.concatenate([use.heat for use in uses])
    layer = np.repeat(np.arange(len(uses)), [use.experts for use in uses])
    rooms: list[int] = np.bincount(layer[np.argsort(-heat, kind="stable")[:total]], minlength=len(uses)).tolist()
    return rooms


def _first_layers(uses: Sequence[LayerUse], total: int) -> Sequence[int]:
    found = []
    for use in uses:
        found.append(min(use.experts, total))
        total -= found[-1]
    return found


def _equal_distances(use: LayerUse, number: int) -> Sequence[int]:
    return [index * use.experts // number for index in range(number)]


def _drawn(use: LayerUse, number: int) -> Sequence[int]:
    chosen: list[int] = np.random.default_rng((SEED, use.layer)).permutation(use.experts)[:number].tolist()
    return chosen


MOST_SELECTED = PlacementPolicy(
    "most-selected",
    "by frequency: those that calibration selected most; without statistics the first ones",
    _most_selected,
    rooms=_where_it_is_hot,
)
FRONT_LOADING = PlacementPolicy(
    "front-loading", "all experts of the first layers, then of the next", _most_selected, rooms=_first_layers
)
UNIFORM = PlacementPolicy("uniform", "as many in every layer, at equal distances", _equal_distances, learns=False)
RANDOM = PlacementPolicy("random", "as many in every layer, drawn", _drawn, learns=False)
LRU = PlacementPolicy(
    "lru", "the least recently used one leaves; empty at first", _equal_distances, dynamic=LastUsed, learns=False
)
LRU_WARM = PlacementPolicy(
    "lru-warm",
    "the least recently used one leaves; at first those that calibration selected most",
    _most_selected,
    dynamic=LastUsed,
)
LFU_DECAY = PlacementPolicy(
    "lfu-decay",
    "the one with the lowest count of uses leaves; counts fade, and start from calibration",
    _most_selected,
    dynamic=DecayedCount,
    parameters={"decay": DECAY},
)
LFRU = PlacementPolicy(
    "lfru",
    "the one with the lowest count of uses by steps since its last use leaves; counts fade, and start from calibration",
    _most_selected,
    dynamic=CountOverAge,
    parameters={"decay": DECAY},
)
LFU_STEADY = PlacementPolicy(
    "lfu-steady",
    "calibration and counts of three spans of time, weighed by how well they foretold what was chosen; an expert comes "
    "in only for one that is worth less",
    _most_selected,
    rooms=_where_it_is_hot,
    dynamic=Foretold,
    parameters={"trust": PolicyParameter(0.9, above=0, below=1), "rate": PolicyParameter(0.03, above=0, below=1)},
    selective=True,
)
POLICIES = (MOST_SELECTED, FRONT_LOADING, UNIFORM, RANDOM, LRU, LRU_WARM, LFU_DECAY, LFRU, LFU_STEADY)
