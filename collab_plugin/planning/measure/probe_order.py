"""What to probe next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.planning.measure.groups import Group, coarse, split
from collab_plugin.planning.measure.together import Together, together_at_levels
from collab_plugin.planning.measure.token_budget import tasks_left
from collab_plugin.stats.sensitivity import Sensitivity


@dataclass(frozen=True)
class Task:
    """A group of tensors to disturb, all of them at once, or (rule, experts kept, experts used) to prune to."""

    what: Group | Together | tuple[str, int, int]

    def known(self, found: Sensitivity) -> bool:
        """True when it was measured already."""
        if isinstance(self.what, Group):
            return any(set(p.tensors) == set(self.what.tensors) for p in found.groups)
        if isinstance(self.what, Together):
            return any(p.errors == self.what.errors for p in found.together)
        return any((p.rule, p.expert_count, p.experts_used) == self.what for p in found.prunings)


@dataclass(frozen=True)
class Round:
    """Tasks to run together, each on ``windows`` windows."""

    tasks: Sequence[Task]
    windows: int


def next_round(
    checkpoint: Checkpoint, prunings: Sequence[tuple[str, int, int]], found: Sensitivity, tokens: int
) -> Round:
    """What to run now that ``found`` is known, within ``tokens`` in all; no tasks when they or the tensors are used up.

    First parts of the model at three depths, then the ``prunings`` and all tensors at once, then the halves of the
    groups with the largest KL divergence.
    """
    groups, most = coarse(checkpoint), tasks_left(tokens, found, found.windows)
    if first := _unknown(groups, found):
        return Round(first[:most], found.windows)
    levels = _unknown((*prunings, *together_at_levels(checkpoint, found.groups)), found)
    if levels and (room := tasks_left(tokens, found, found.level_windows)):
        return Round(levels[:room], found.level_windows)
    kld = {frozenset(p.tensors): p.kld for p in found.groups}

    def smallest_known(group: Group) -> list[Group]:
        parts = split(group, checkpoint)
        known = parts and all(frozenset(part.tensors) in kld for part in parts)
        return [leaf for part in parts for leaf in smallest_known(part)] if known else [group]

    leaves = [leaf for group in groups for leaf in smallest_known(group) if split(leaf, checkpoint)]
    worst = sorted(leaves, key=lambda g: -kld[frozenset(g.tensors)])[: most // 2]
    halves = [part for group in worst for part in split(group, checkpoint)]
    return Round(_unknown(halves, found), found.windows)


def _unknown(wanted: Sequence[Group | Together | tuple[str, int, int]], found: Sensitivity) -> list[Task]:
    return [task for task in map(Task, wanted) if not task.known(found)]
