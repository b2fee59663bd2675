"""Which experts a plan keeps, and what that means for each stored tensor. Knows no vLLM and no files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from collab_plugin.checkpoint.families.family import Family
from collab_plugin.plans.plan import Plan

_LAYER = re.compile(r"^(?:.*\.)?layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"^experts\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Selection:
    """What the model becomes.

    ``kept[layer]``: original expert ids in their new order, empty when every expert stays in its place.
    ``count`` experts a layer, in the largest where layers differ; ``used`` a token; ``groups`` and
    ``groups_used`` are None where the plan leaves them as they are.
    """

    kept: Mapping[int, tuple[int, ...]]
    count: int
    used: int
    groups: int | None
    groups_used: int | None

    @property
    def counts(self) -> dict[int, int]:
        """Experts of each layer that the plan lists."""
        return {layer: len(ids) for layer, ids in self.kept.items()}

    @property
    def fewest(self) -> int:
        return min(self.counts.values(), default=self.count)

    @property
    def varied(self) -> bool:
        """True when layers keep different numbers of experts."""
        return self.fewest != self.count

    @property
    def span(self) -> str:
        """Experts a layer, for people."""
        return f"{self.fewest} to {self.count}" if self.varied else str(self.count)


@dataclass(frozen=True)
class Part:
    """What to read of a stored tensor: under which ``name``, and which ``rows`` of axis 0 (None: all)."""

    name: str
    rows: tuple[int, ...] | None = None


def selection_of(plan: Plan, layers: int) -> Selection:
    """The plan's choice for a model of ``layers`` blocks; a GGUF may count prediction layers on top."""
    kept = {layer: ids for layer, ids in plan.pruning.kept.items() if layer < layers}
    return Selection(
        kept=kept,
        count=max(map(len, kept.values()), default=plan.pruning.expert_count),
        used=plan.activation.used,
        groups=_groups(plan, "expert_group_count"),
        groups_used=_groups(plan, "expert_group_used_count"),
    )


def _groups(plan: Plan, key: str) -> int | None:
    """A group number that the plan changes; a removed key means one group, which routes over all experts."""
    name = f"{plan.source.architecture}.{key}"
    if name not in plan.metadata:
        return None
    value = plan.metadata[name]
    return 1 if value is None else value


def layer_of(name: str) -> int | None:
    """The decoder layer of a stored tensor's name, None outside of layers."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def within_block(name: str, family: Family) -> str | None:
    """What follows the block of experts and router in ``name``: "experts.3.up_proj.weight", "gate.weight"."""
    found = _LAYER.match(name)
    if not found:
        return None
    return next((found[2][len(block) + 1 :] for block in family.blocks if found[2].startswith(f"{block}.")), None)


def expert_of(name: str, family: Family) -> int | None:
    """The expert whose tensor ``name`` is, None for everything else, fused experts included."""
    found = _EXPERT.match(within_block(name, family) or "")
    return int(found[1]) if found else None


def part_of(name: str, family: Family, selection: Selection) -> Part | None:
    """What to read of the tensor called ``name``, None for a pruned expert's.

    Fused experts ([experts, ...] in one tensor) and router rows are read by row.
    """
    layer, rest = layer_of(name), within_block(name, family)
    kept = None if layer is None else selection.kept.get(layer)
    if kept is None or rest is None:
        return Part(name)
    if found := _EXPERT.match(rest):
        expert = int(found[1])
        if expert not in kept:
            return None
        return Part(f"{name.removesuffix(rest)}experts.{kept.index(expert)}.{found[2]}")
    if rest.startswith("experts.") or rest in family.router:
        return Part(name, kept)
    return Part(name)
