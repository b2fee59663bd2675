"""From sizes, statistics and speeds to a placement document and what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.placement.artifact_shape import shape_of_checkpoint
from collab_plugin.placement.builtin_policies import LFU_STEADY, MOST_SELECTED
from collab_plugin.placement.expert_tensors import ExpertTensor, TypedBytes, expert_tensors, layer_bytes, other_reads
from collab_plugin.placement.memory import Memory, memory_of
from collab_plugin.placement.place_experts import place_experts
from collab_plugin.placement.place_tensors import place_tensors, worth_the_same
from collab_plugin.placement.placement import (
    ExpertPlacement,
    LayerExperts,
    PlacedArtifact,
    Placement,
    PlacementSource,
    PolicyUse,
    SpeedForecast,
    TensorPlacement,
    Tier,
)
from collab_plugin.placement.policy import LayerUse, PlacementPolicy, rooms_of
from collab_plugin.placement.policy_table import PolicyRow, must_hold_all, policy_rows
from collab_plugin.placement.run_setup import RunSetup
from collab_plugin.placement.tier_rooms import TierRoom, TierSpeed, rooms_for_experts, total_seconds
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import LayerRouting

_NODES = 45
"""Small operations of llama.cpp's graph for one layer, about; weighed only where their time was measured."""
DEFAULT = LFU_STEADY.name
PLAN_FINGERPRINT = "collab.plan.fingerprint"


@dataclass(frozen=True)
class PlaceInput:
    """``tiers`` with their ``speeds``. ``routing``: what calibration saw, in this model's numbers, from ``source``;
    None: not known. ``policies``: all that are known, ``policy`` the one that is wanted, None: the fastest one on the
    trace, or without a trace `DEFAULT`.
    ``node_seconds``: what a small operation takes; ``error``: of earlier forecasts."""

    tiers: tuple[Tier, ...]
    speeds: tuple[TierSpeed, ...]
    setup: RunSetup
    policies: Mapping[str, PlacementPolicy]
    policy: str | None
    routing: Mapping[int, LayerRouting] | None
    source: PlacementSource | None
    trace: RoutingTrace | None
    node_seconds: float
    error: float | None


@dataclass(frozen=True)
class TierContent:
    """Bytes in a tier: what every token reads and the rest that running takes (``always``), experts where whole
    tensors are placed and where single experts are. Shares of expert reads that it serves, in both cases."""

    name: str
    always: int
    tensor_bytes: int
    tensor_reads: float
    expert_bytes: int
    expert_reads: float


@dataclass(frozen=True)
class PolicyOutlook:
    """A row of the table of policies, with the bytes that it moves and the tokens a second that it gives."""

    row: PolicyRow
    moved_bytes: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Placed:
    """``honours``: engine -> what it does with the placement, a sentence each."""

    placement: Placement
    memory: Memory
    contents: tuple[TierContent, ...]
    policies: tuple[PolicyOutlook, ...]
    honours: Mapping[str, tuple[str, ...]]


def place(checkpoint: Checkpoint, given: PlaceInput) -> Placed:
    """Place the experts of ``checkpoint``. CollabError where tiers are too small, a policy is unknown, or the model has
    no experts; ``honours`` is left empty."""
    shape = shape_of_checkpoint(checkpoint)
    tensors = expert_tensors(checkpoint, shape.used)
    if not tensors:
        raise CollabError(f"{checkpoint.address} has no routed experts, and so nothing to place")
    memory = memory_of(shape, given.setup, {})
    rooms = rooms_for_experts(given.tiers, given.speeds, memory, sum(tensor.bytes for tensor in tensors))
    reads = _Reads(
        other_reads(checkpoint.tensors.values()), tensors, rooms, given, len(checkpoint_layers(checkpoint)), shape.used
    )
    by_tensor = _by_tensor(tensors, rooms, reads)
    sizes, uses = layer_bytes(tensors), _uses(tensors, given.routing)
    table = policy_rows(list(given.policies.values()), uses, sizes, rooms[0].experts, given.trace)
    by_heat = _start_shares(place_experts(MOST_SELECTED, uses, sizes, rooms), sizes, rooms)
    outlooks = tuple(_outlook(row, reads, by_heat, rooms, sizes) for row in table)
    policy = given.policies[_chosen(given, outlooks, uses, shape.used)]
    by_expert = _by_expert(policy, uses, sizes, rooms, reads, table, given)
    fingerprint = checkpoint.metadata.get(PLAN_FINGERPRINT)
    placement = Placement(
        PlacedArtifact(shape.name, shape.bytes, None if fingerprint is None else str(fingerprint.value)),
        given.tiers,
        by_tensor,
        by_expert,
        given.source,
        given.setup.context,
        tuple(_notes(given, memory, by_tensor, policy, table)),
    )
    return Placed(placement, memory, tuple(_contents(placement, tensors, sizes, memory)), outlooks, {})


def checkpoint_layers(checkpoint: Checkpoint) -> set[int]:
    return {info.layer for info in checkpoint.tensors.values() if info.layer is not None}


def _uses(tensors: Sequence[ExpertTensor], routing: Mapping[int, LayerRouting] | None) -> list[LayerUse]:
    experts = {tensor.layer: tensor.experts for tensor in tensors}
    return [LayerUse(layer, n, None if routing is None else routing.get(layer)) for layer, n in experts.items()]


@dataclass(frozen=True)
class _Reads:
    """Seconds that one token takes, by what is read from where."""

    others: Sequence[TypedBytes]
    tensors: Sequence[ExpertTensor]
    rooms: Sequence[TierRoom]
    given: PlaceInput
    layers: int
    used: int

    def speed(self, experts: Sequence[Sequence[TypedBytes]], moved: Sequence[float]) -> SpeedForecast | None:
        """``experts``: for each tier, what a token reads of them there; ``moved``: bytes brought in from each."""
        parts = [(self.rooms[0].speed, self.others)]
        parts += [(room.speed, reads) for room, reads in zip(self.rooms, experts, strict=True)]
        copies = [
            (TierSpeed(room.speed.moving, {}, None), [TypedBytes("", number)])
            for room, number in zip(self.rooms, moved, strict=True)
        ]
        expected, roof = total_seconds([*parts, *copies], roof=False), total_seconds([*parts, *copies], roof=True)
        if not expected or not roof:
            return None
        return SpeedForecast(
            1 / (expected + _NODES * self.layers * self.given.node_seconds), 1 / roof, self.given.error
        )

    def moved_share(self, row: PolicyRow) -> float:
        """Experts that a row brings in, as a share of those that a token uses."""
        return (row.moved or 0.0) / (self.used * len({tensor.layer for tensor in self.tensors}))

    def shared_out(self, shares: Sequence[float], brings_all: bool, moved: float) -> SpeedForecast | None:
        """With these shares of all experts' reads in each tier. ``brings_all``: what the others hold is brought into
        the first before it is used; else it is used where it lies, and ``moved``, as a share of all reads, is brought
        in beside."""
        total = sum(tensor.read for tensor in self.tensors)
        lower = sum(shares[1:])
        here = [1.0, *(0.0 for _ in shares[1:])] if brings_all else shares
        experts = [[TypedBytes(t.type, t.read * share) for t in self.tensors] for share in here]
        part = 1.0 if brings_all else (moved / lower if lower else 0.0)
        return self.speed(experts, [0.0, *(total * share * part for share in shares[1:])])


def _by_tensor(tensors: Sequence[ExpertTensor], rooms: Sequence[TierRoom], reads: _Reads) -> TensorPlacement:
    where = place_tensors(tensors, rooms)
    total = sum(tensor.read for tensor in tensors)
    shares = {room.tier.name: sum(t.read for t in tensors if where[t.name] == room.tier.name) / total for room in rooms}
    by_tier = [[TypedBytes(t.type, t.read) for t in tensors if where[t.name] == room.tier.name] for room in rooms]
    speed = reads.speed(by_tier, [0.0] * len(rooms))
    return TensorPlacement(where, worth_the_same(tensors, rooms), shares, speed)


def _chosen(given: PlaceInput, outlooks: Sequence[PolicyOutlook], uses: Sequence[LayerUse], used: int) -> str:
    """CollabError for a policy that is not known, or one that cannot be run with this room."""
    rows = {outlook.row.policy: outlook.row for outlook in outlooks}
    if given.policy is not None:
        if given.policy not in given.policies:
            raise CollabError(f"unknown placement policy {given.policy!r}; known: {', '.join(sorted(given.policies))}")
        if not _can_run(rows[given.policy], uses, used, given):
            raise CollabError(
                f"placement policy {given.policy!r} moves experts, and needs room for all that a token uses in every "
                "layer: take a larger first tier, or a static policy"
            )
        return given.policy
    if given.trace is not None:
        able = [o for o in outlooks if o.row.hits is not None and o.row.policy in given.policies]
        return max(able, key=lambda o: (o.tokens_per_second or 0.0, o.row.hits or 0.0)).row.policy
    return DEFAULT


def _can_run(row: PolicyRow, uses: Sequence[LayerUse], used: int, given: PlaceInput) -> bool:
    """Whether every layer has room for what a token uses, where the policy needs that."""
    policy = given.policies[row.policy]
    return not must_hold_all(policy) or min(rooms_of(policy, uses, row.room)) >= used


def _by_expert(
    policy: PlacementPolicy,
    uses: Sequence[LayerUse],
    sizes: Mapping[int, int],
    rooms: Sequence[TierRoom],
    reads: _Reads,
    table: Sequence[PolicyRow],
    given: PlaceInput,
) -> ExpertPlacement:
    layers = place_experts(policy, uses, sizes, rooms)
    start = _start_shares(layers, sizes, rooms)
    row = next((row for row in table if row.policy == policy.name and row.seen_on == "trace"), None)
    shares = start if row is None or row.hits is None else _with_hits(start, rooms, row.hits)
    moved = 0.0 if row is None else reads.moved_share(row)
    speed = reads.shared_out([shares[room.tier.name] for room in rooms], must_hold_all(policy), moved)
    return ExpertPlacement(PolicyUse(policy.name, policy.values, policy.dynamic is not None), layers, shares, speed)


def _start_shares(
    layers: Mapping[int, LayerExperts], sizes: Mapping[int, int], rooms: Sequence[TierRoom]
) -> dict[str, float]:
    """Tier -> share of all expert bytes that a token reads, if choices fall as the statistics say."""
    total = sum(sizes.values())
    return {r.tier.name: sum(sizes[n] / total * e.reads[r.tier.name] for n, e in layers.items()) for r in rooms}


def _with_hits(start: Mapping[str, float], rooms: Sequence[TierRoom], hits: float) -> dict[str, float]:
    """``hits`` in the first tier; the others serve the rest, in the proportions that they had."""
    names = [room.tier.name for room in rooms]
    others = sum(start[name] for name in names[1:])
    rest = {name: (1 - hits) * (start[name] / others if others else 0.0) for name in names[1:]}
    if names[1:] and not others:
        rest[names[1]] = 1 - hits
    return {names[0]: hits if names[1:] else 1.0, **rest}


def _outlook(
    row: PolicyRow,
    reads: _Reads,
    by_heat: Mapping[str, float],
    rooms: Sequence[TierRoom],
    sizes: Mapping[int, int],
) -> PolicyOutlook:
    if row.hits is None or row.moved is None:
        return PolicyOutlook(row, None, None)
    shares = _with_hits(by_heat, rooms, row.hits)
    by_tier = [shares[room.tier.name] for room in rooms]
    speed = reads.shared_out(by_tier, row.dynamic and not row.selective, reads.moved_share(row))
    mean = sum(sizes.values()) / len(sizes)
    return PolicyOutlook(row, row.moved * mean, None if speed is None else speed.expected)


def _contents(
    placement: Placement, tensors: Sequence[ExpertTensor], sizes: Mapping[int, int], memory: Memory
) -> list[TierContent]:
    total = sum(tensor.bytes for tensor in tensors)
    experts = placement.experts
    assert experts is not None
    found = []
    for at, tier in enumerate(placement.tiers):
        single = sum(sizes[layer] * len(e.tiers[tier.name]) for layer, e in experts.layers.items())
        whole = sum(t.bytes for t in tensors if placement.tensors.tiers[t.name] == tier.name)
        found.append(
            TierContent(
                tier.name,
                memory.total - total if at == 0 else 0,
                whole,
                placement.tensors.reads[tier.name],
                single,
                experts.reads[tier.name],
            )
        )
    return found


def _notes(
    given: PlaceInput,
    memory: Memory,
    by_tensor: TensorPlacement,
    policy: PlacementPolicy,
    table: Sequence[PolicyRow],
) -> list[str]:
    notes = []
    kinds = [tier.kind for tier in given.tiers]
    if "unified" in kinds:
        notes.append(
            "processor and graphics share this memory: moving experts from one to the other moves no byte and gains "
            "nothing, so that only what does not fit into it is placed elsewhere"
        )
    if given.routing is None:
        notes.append("no statistics: experts of a layer count alike, so that shares follow from bytes alone")
    if given.trace is None and policy.dynamic is not None:
        notes.append("no trace: the shares of a policy that moves experts are those of its start")
    if given.trace is not None and any(row.hits is None for row in table):
        notes.append(
            "the first tier has no room for all that a token uses in every layer: policies that bring in every missing "
            "expert cannot be run"
        )
    if by_tensor.fit and len(given.tiers) > 1:
        notes.append(
            "whole expert tensors are worth the same a byte, so that which of them lie in the first tier does not "
            "matter; llama.cpp's own fitting is as good where the engine has it"
        )
    if by_tensor.speed is None:
        unknown = [t.name for t, s in zip(given.tiers, given.speeds, strict=True) if s.bandwidth is None]
        notes.append(f"no speed is forecast: the bandwidth of {', '.join(unknown)} is not known; measure, or give it")
    if not memory.complete:
        unknown = [part.name for part in memory.runtime if part.bytes is None]
        notes.append(f"not all that running takes is known: without {', '.join(unknown)}")
    return notes


def with_honours(placed: Placed, honours: Mapping[str, tuple[str, ...]]) -> Placed:
    """``placed`` with what engines do with it."""
    return replace(placed, honours=honours)
