"""Replay a routing trace against a fast memory for experts: which choices it serves, and what moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError
from collab_plugin.placement.policy import F64, LayerUse, Mask, PlacementPolicy, Residency, ranked_experts, rooms_of
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import LayerRouting

I16 = NDArray[np.int16]
OPTIMUM = "optimum"


@dataclass(frozen=True)
class Replay:
    """``room``: experts that the memory holds, over all layers. ``missed`` i16[tokens, layers]: choices that it did not
    serve. ``requests``: choices in all. ``moved``: experts that were brought in while the model ran."""

    policy: str
    room: int
    missed: I16
    requests: int
    moved: int

    @property
    def misses(self) -> int:
        return int(self.missed.sum(dtype=np.int64))

    @property
    def hit_rate(self) -> float:
        """Share of the choices that the fast memory served."""
        return 1 - self.misses / self.requests if self.requests else 0.0


def uses_of(layers: Sequence[int], experts: int, routing: Mapping[int, LayerRouting] | None) -> list[LayerUse]:
    """What a policy knows of each layer."""
    return [LayerUse(layer, experts, None if routing is None else routing.get(layer)) for layer in layers]


def replay(
    trace: RoutingTrace,
    policy: PlacementPolicy,
    rooms: Sequence[int],
    uses: Sequence[LayerUse],
) -> list[Replay]:
    """Replay ``trace`` once for each of ``rooms``, numbers of experts over all layers; one cache a layer.

    A step is a token. Its choices are looked up all at once; then those that were missing come in, and others leave
    (`Residency`). The memory is kept from one sequence to the next. CollabError where a dynamic policy has less room in
    a layer than a token chooses experts.
    """
    each = np.array([rooms_of(policy, uses, room) for room in rooms])
    start = _start(policy, each, uses, trace.experts)
    if policy.dynamic is None:
        missed = [_lookup(trace.chosen, resident) for resident in start]
        return [Replay(policy.name, r, m, trace.requests, 0) for r, m in zip(rooms, missed, strict=True)]
    if not policy.selective:
        _check_room(policy.name, each, trace)
    known = policy.learns and any(use.routing is not None for use in uses)
    width = trace.chosen.shape[2]
    expected = np.stack([_padded(use.heat * width if known else np.zeros(use.experts), trace.experts) for use in uses])
    ranking = policy.dynamic(np.tile(expected, (len(rooms), 1)), policy.values)
    at_first = start if known else np.zeros_like(start)
    return _dynamic(policy.name, trace, rooms, each, at_first, ranking, policy.selective)


def best_possible(trace: RoutingTrace, rooms: Sequence[int], *, filled: bool = False) -> list[Replay]:
    """Belady's optimum under the same rules: what leaves is the expert whose next use is the farthest away. No policy
    misses less, with as much room in every layer and every missing expert brought in. It starts empty, or ``filled``
    with what is used first, which no start beats."""
    layers = len(trace.layers)
    each = np.array([[room // layers + (at < room % layers) for at in range(layers)] for room in rooms])
    each = np.minimum(each, trace.experts)
    _check_room(OPTIMUM, each, trace)
    ranking = _NextUse(trace, len(rooms))
    start = np.zeros((*each.shape, trace.experts), np.bool_)
    if filled:
        soonest = ranking.worth.reshape(start.shape).argsort(2, kind="stable")[..., ::-1]
        np.put_along_axis(start, soonest, np.arange(trace.experts) < each[..., None], 2)
    return _dynamic(OPTIMUM, trace, rooms, each, start, ranking)


def _check_room(name: str, each: NDArray[np.int64], trace: RoutingTrace) -> None:
    if each.size and each.min() < (width := trace.chosen.shape[2]):
        raise CollabError(
            f"placement policy {name!r} moves experts, and needs room for the {width} that a token uses in every "
            f"layer; there is room for {each.min()} in one: take a larger tier, or a static policy"
        )


def _padded(values: F64, experts: int) -> F64:
    return np.pad(values, (0, experts - len(values)))


def _start(
    policy: PlacementPolicy, each: NDArray[np.int64], uses: Sequence[LayerUse], experts: int
) -> NDArray[np.bool_]:
    """bool[rooms, layers, experts]: what lies in the fast memory at first."""
    start = np.zeros((*each.shape, experts), np.bool_)
    for at, use in enumerate(uses):
        for row, number in enumerate(each[:, at]):
            start[row, at, ranked_experts(policy, use, int(number))] = True
    return start


def _lookup(chosen: I16, resident: Mask) -> I16:
    """i16[tokens, layers]: choices that are not in ``resident`` bool[layers, experts], which does not change."""
    with_none = np.concatenate([resident, np.ones((len(resident), 1), np.bool_)], 1)
    there = with_none[np.arange(len(resident))[:, None], chosen]
    return np.asarray((~there).sum(2), np.int16)


def _dynamic(
    name: str,
    trace: RoutingTrace,
    rooms: Sequence[int],
    each: NDArray[np.int64],
    start: NDArray[np.bool_],
    ranking: Residency,
    selective: bool = False,
) -> list[Replay]:
    """All rooms side by side: row r × layers + l is layer l with room r."""
    rows, layers = each.size, len(trace.layers)
    missed, moved = _replay_rows(trace.chosen, each.reshape(rows), start.reshape(rows, -1), ranking, selective)
    by_room = missed.reshape(trace.tokens, len(rooms), layers)
    brought = moved.reshape(len(rooms), layers).sum(1)
    return [Replay(name, room, by_room[:, at], trace.requests, int(brought[at])) for at, room in enumerate(rooms)]


def _replay_rows(
    chosen: I16, room: NDArray[np.int64], resident: Mask, ranking: Residency, selective: bool
) -> tuple[I16, NDArray[np.int64]]:
    """i16[tokens, rows] of misses, i64[rows] of experts brought in; ``resident`` bool[rows, experts] is changed."""
    tokens, layers, _ = chosen.shape
    rows, experts = resident.shape
    copies = rows // layers
    at = np.arange(layers)[:, None]
    every = np.arange(rows)
    missed = np.empty((tokens, rows), np.int16)
    held = resident.sum(1)
    moved = np.zeros(rows, np.int64)
    step = np.zeros((layers, experts + 1), np.bool_)  # the last column takes NONE
    for token in range(tokens):
        step[:] = False
        step[at, chosen[token]] = True
        mask = np.tile(step[:, :experts], (copies, 1))
        new = (mask & ~resident).sum(1)
        missed[token] = new
        ranking.saw(mask)
        if not new.any():
            continue
        before = resident.copy() if selective else resident
        resident |= mask
        held += new
        over = held - room
        if over.max() > 0:
            may_leave = resident if selective else resident & ~mask
            _evict(np.where(may_leave, ranking.worth, np.inf)[:, ::-1], over, every, resident)
            np.minimum(held, room, out=held)
        moved += (resident & ~before).sum(1) if selective else new
    return missed, moved


def _evict(worth: F64, over: NDArray[np.int64], rows: NDArray[np.int64], resident: Mask) -> None:
    """Take ``over[row]`` experts of the least worth out of each row; ``worth`` has the highest number first, so that
    of equal ones it is found first."""
    last = resident.shape[1] - 1
    active = rows[over > 0]
    worth, over = worth[active], over[active]
    while len(active):
        least = worth.argmin(1)
        resident[active, last - least] = False
        worth[np.arange(len(active)), least] = np.inf
        over = over - 1
        if (on := over > 0).all():
            continue
        active, worth, over = active[on], worth[on], over[on]


class _NextUse(Residency):
    """Worth is how soon the next use comes; the trace is known."""

    def __init__(self, trace: RoutingTrace, copies: int) -> None:
        self._chosen, self._copies, self._token = trace.chosen, copies, 0
        self._next, self._due = _next_uses(trace)
        self._layers = np.arange(len(trace.layers))[:, None]

    def saw(self, chosen: Mask) -> None:
        self._due[self._layers, self._chosen[self._token]] = self._next[self._token]
        self._token += 1

    @property
    def worth(self) -> F64:
        return np.tile(-self._due[:, :-1].astype(np.float64), (self._copies, 1))


def _next_uses(trace: RoutingTrace) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """i32[tokens, layers, k]: the token at which the same expert is chosen next; one past all where there is none. And
    i32[layers, experts + 1]: where each is chosen first."""
    tokens, layers, _ = trace.chosen.shape
    following = np.empty(trace.chosen.shape, np.int32)
    due = np.full((layers, trace.experts + 1), tokens + 1, np.int32)
    at = np.arange(layers)[:, None]
    for token in range(tokens - 1, -1, -1):
        following[token] = due[at, trace.chosen[token]]
        due[at, trace.chosen[token]] = token
    return following, due
