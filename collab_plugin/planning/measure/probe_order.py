"""What to probe next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.planning.measure.groups import Group, coarse, split
from collab_plugin.stats.sensitivity import Sensitivity


@dataclass(frozen=True)
class Task:
    """A group of tensors to disturb, or (rule, experts kept, experts used) to prune to."""

    what: Group | tuple[str, int, int]

    def known(self, found: Sensitivity) -> bool:
        """True when it was measured already."""
        if isinstance(self.what, Group):
            return any(set(p.tensors) == set(self.what.tensors) for p in found.groups)
        return any((p.rule, p.expert_count, p.experts_used) == self.what for p in found.prunings)


def next_round(
    checkpoint: Checkpoint, prunings: Sequence[tuple[str, int, int]], found: Sensitivity, most: int
) -> list[Task]:
    """Up to ``most`` tasks to run together now that ``found`` is known; none when every tensor stands alone.

    First parts of the model at three depths and the ``prunings``, then the halves of the groups with the largest
    KL divergence.
    """
    groups = coarse(checkpoint)
    first = [task for task in (*map(Task, groups), *map(Task, prunings)) if not task.known(found)]
    if first:
        return first[:most]
    kld = {frozenset(p.tensors): p.kld for p in found.groups}

    def smallest_known(group: Group) -> list[Group]:
        parts = split(group, checkpoint)
        known = parts and all(frozenset(part.tensors) in kld for part in parts)
        return [leaf for part in parts for leaf in smallest_known(part)] if known else [group]

    leaves = [leaf for group in groups for leaf in smallest_known(group) if split(leaf, checkpoint)]
    worst = sorted(leaves, key=lambda g: -kld[frozenset(g.tensors)])[: most // 2]
    halves = [Task(part) for group in worst for part in split(group, checkpoint)]
    return [task for task in halves if not task.known(found)]
