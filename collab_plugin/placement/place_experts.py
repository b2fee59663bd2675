"""Single experts into tiers: a policy fills the first, heat the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from collab_plugin.placement.placement import LayerExperts
from collab_plugin.placement.policy import LayerUse, PlacementPolicy, ranked_experts, rooms_of
from collab_plugin.placement.tier_rooms import TierRoom


def most_experts(policy: PlacementPolicy, uses: Sequence[LayerUse], sizes: Mapping[int, int], room: int | None) -> int:
    """The largest number of experts, over all layers, that the policy can keep in ``room`` bytes; ``sizes``: layer ->
    bytes of one expert."""
    low, high = 0, sum(use.experts for use in uses)
    while room is not None and low < high:
        middle = (low + high + 1) // 2
        taken = sum(n * sizes[use.layer] for n, use in zip(rooms_of(policy, uses, middle), uses, strict=True))
        low, high = (middle, high) if taken <= room else (low, middle - 1)
    return high


def place_experts(
    policy: PlacementPolicy, uses: Sequence[LayerUse], sizes: Mapping[int, int], rooms: Sequence[TierRoom]
) -> dict[int, LayerExperts]:
    """Layer -> its experts by tier. The policy fills the first tier; of the others, the hottest of all layers come
    first."""
    total = most_experts(policy, uses, sizes, rooms[0].experts)
    tiers: dict[int, dict[str, list[int]]] = {use.layer: {room.tier.name: [] for room in rooms} for use in uses}
    heat = {use.layer: use.heat for use in uses}
    for use, number in zip(uses, rooms_of(policy, uses, total), strict=True):
        tiers[use.layer][rooms[0].tier.name] = ranked_experts(policy, use, number)
    left = [
        (-float(heat[use.layer][expert]), use.layer, expert)
        for use in uses
        for expert in sorted(set(range(use.experts)) - set(tiers[use.layer][rooms[0].tier.name]))
    ]
    left.sort()
    at, free = 1, rooms[1].experts if len(rooms) > 1 else None
    for _, layer, expert in left:
        while at < len(rooms) - 1 and free is not None and sizes[layer] > free:
            at, free = at + 1, rooms[at + 1].experts
        tiers[layer][rooms[min(at, len(rooms) - 1)].tier.name].append(expert)
        free = None if free is None else free - sizes[layer]
    return {
        layer: LayerExperts(
            {tier: tuple(ids) for tier, ids in by_tier.items()},
            {tier: float(np.clip(heat[layer][ids].sum(), 0, 1)) for tier, ids in by_tier.items()},
        )
        for layer, by_tier in tiers.items()
    }
