"""How much room each memory has for routed experts, and what reading from it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collab_plugin.errors import CollabError
from collab_plugin.placement.expert_tensors import TypedBytes
from collab_plugin.placement.memory import Memory
from collab_plugin.placement.placement import Tier


@dataclass(frozen=True)
class TierSpeed:
    """Bytes a second: of the memory (None: not known), and by ggml type as the device multiplies with them, where that
    was measured. ``moving``: as experts are brought from it into the first tier."""

    bandwidth: float | None
    kernels: Mapping[str, float]
    moving: float | None

    def seconds(self, type_name: str, number: float) -> float | None:
        """To multiply with ``number`` bytes of a type; None where nothing is known."""
        speed = self.kernels.get(type_name, self.bandwidth)
        return None if speed is None else number / speed

    def least(self, number: float) -> float | None:
        """At full bandwidth: the highest that was given or measured."""
        return None if self.bandwidth is None else number / max(self.bandwidth, *self.kernels.values(), 0.0)


@dataclass(frozen=True)
class TierRoom:
    """``experts``: bytes of them that fit, None: as many as there are."""

    tier: Tier
    speed: TierSpeed
    experts: int | None


def rooms_for_experts(
    tiers: Sequence[Tier], speeds: Sequence[TierSpeed], memory: Memory, expert_bytes: int
) -> list[TierRoom]:
    """All but routed experts, the cache and the rest that running takes lie in the first tier; experts take what is
    left there, and the other tiers. CollabError where that is not enough."""
    always = memory.total - expert_bytes
    first = tiers[0]
    if first.bytes is None or first.kind == "disk":
        raise CollabError(f"`tiers` begins with {first.name}: name the fastest memory first, with its size")
    if first.bytes < always:
        raise CollabError(
            f"the weights that every token reads, KV cache, compute buffer and reserve take {always:,} bytes, and tier "
            f"{first.name} has {first.bytes:,}: give it more, or lower `context`, `sequences` or `reserve`"
        )
    rooms = [None if t.bytes is None else t.bytes - (always if t is first else 0) for t in tiers]
    if None not in rooms and (missing := expert_bytes - sum(room for room in rooms if room is not None)) > 0:
        raise CollabError(f"the tiers hold {missing:,} bytes less than the model: give more, or a `disk` as the last")
    return [TierRoom(tier, speed, room) for tier, speed, room in zip(tiers, speeds, rooms, strict=True)]


def total_seconds(parts: Sequence[tuple[TierSpeed, Sequence[TypedBytes]]], roof: bool) -> float | None:
    """To read these parts one after another; None where a tier that is read has no known speed. ``roof``: at full
    bandwidth."""
    total = 0.0
    for speed, reads in parts:
        for type_name, number in reads:
            if number:
                seconds = speed.least(number) if roof else speed.seconds(type_name, number)
                if seconds is None:
                    return None
                total += seconds
    return total
