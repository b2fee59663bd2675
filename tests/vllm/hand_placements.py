"""Placements written by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from collab_plugin.placement.placement import (
    ExpertPlacement,
    LayerExperts,
    PlacedArtifact,
    Placement,
    PolicyUse,
    TensorPlacement,
    Tier,
)
from collab_plugin.placement.placement_file import write_placement
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint


def save_placement(
    path: Path, plan: Plan, counts: Mapping[int, int], hot: Sequence[int], policy: PolicyUse, **other: object
) -> Path:
    """``hot`` of each layer's ``counts`` experts on the device, the others in two more tiers, the last first."""
    layers = {}
    for layer, count in counts.items():
        rest = tuple(e for e in range(count - 1, -1, -1) if e not in hot)
        middle = len(rest) // 2
        layers[layer] = LayerExperts({"card": tuple(hot), "ram": rest[:middle], "disk": rest[middle:]}, {})
    made = Placement(
        artifact=PlacedArtifact("tiny", 1, plan_fingerprint(plan)),
        tiers=(Tier("card", "gpu", 1), Tier("ram", "host", 1), Tier("disk", "disk", None)),
        tensors=TensorPlacement({}, False, {}, None),
        experts=ExpertPlacement(policy, layers, {}, None),
        stats=None,
        context=1,
        notes=(),
    )
    write_placement(path, dataclasses.replace(made, **other))  # type: ignore[arg-type]
    return path
