"""Whole expert tensors into tiers, by what each saves a byte."""

from __future__ import annotations

from collections.abc import Sequence

from collab_plugin.placement.expert_tensors import ExpertTensor
from collab_plugin.placement.tier_rooms import TierRoom

_SAME = 0.02
"""Gains a byte that differ by less than this share are not told apart: measurements are no better."""


def place_tensors(tensors: Sequence[ExpertTensor], rooms: Sequence[TierRoom]) -> dict[str, str]:
    """Tensor -> tier. Every tensor of a layer is read for every token, the same share of it whatever the router does;
    so what a byte gains in a faster tier depends on its type alone. Of equal gains, earlier layers first, so that
    layers stay whole. A tensor that does not fit into a tier any more goes to the next one."""
    placed: dict[str, str] = {}
    left = sorted(tensors, key=lambda tensor: (-gain(tensor, rooms), tensor.layer, tensor.name))
    for room in rooms:
        free, over = room.experts, []
        for tensor in left:
            if free is None or tensor.bytes <= free:
                placed[tensor.name] = room.tier.name
                free = None if free is None else free - tensor.bytes
            else:
                over.append(tensor)
        left = over
    if left:  # whole tensors leave gaps: what is over goes to the last tier that is no disk's file, or the disk
        placed |= {tensor.name: rooms[-1].tier.name for tensor in left}
    return {tensor.name: placed[tensor.name] for tensor in tensors}


def gain(tensor: ExpertTensor, rooms: Sequence[TierRoom]) -> float:
    """Seconds a token that a byte of the tensor's size saves in the first tier, against the second; 1 where speeds are
    not known, rounded to what measurements can tell apart."""
    if len(rooms) < 2:
        return 1.0
    fast, slow = (room.speed.seconds(tensor.type, tensor.read / tensor.bytes) for room in rooms[:2])
    if fast is None or slow is None:
        return 1.0
    return float(f"{max(slow - fast, 0.0):.1e}")


def worth_the_same(tensors: Sequence[ExpertTensor], rooms: Sequence[TierRoom]) -> bool:
    """Whether no order of tensors is better than another."""
    gains = [gain(tensor, rooms) for tensor in tensors]
    return not gains or max(gains) - min(gains) <= _SAME * max(gains)
