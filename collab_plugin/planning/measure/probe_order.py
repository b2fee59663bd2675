"""What to probe next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.planning.measure.groups import Group, coarse, split
from collab_plugin.stats.sensitivity import Sensitivity


@dataclass(frozen=True)
class Task:
    """A group of tensors to quantize, or (experts kept, experts used) to prune to."""

    what: Group | tuple[int, int]

    def known(self, found: Sensitivity, rule: str) -> bool:
        """True when it was measured already; prunings by the same ``rule``."""
        if isinstance(self.what, Group):
            return any(set(p.types) == set(self.what.tensors) for p in found.types)
        return any((p.expert_count, p.experts_used) == self.what and p.rule == rule for p in found.prunings)


def tasks(
    checkpoint: Checkpoint, counts: Sequence[tuple[int, int]], found: Callable[[], Sensitivity]
) -> Iterator[Task]:
    """Parts of the model at three depths, two prunings, then by turns the next pruning and the halves of the group
    with the largest KL divergence, until nothing is left.

    ``counts``: prunings, most telling first. ``found()``: what was measured by then.
    """
    groups = coarse(checkpoint)
    yield from map(Task, groups)
    yield from map(Task, counts[:2])
    left = iter(counts)
    while True:
        pruning = next(left, None)
        if pruning is not None:
            yield Task(pruning)
        worst = _worst(groups, checkpoint, found())
        if worst is not None:
            parts = split(worst, checkpoint)
            groups = [g for g in groups if g != worst] + list(parts)
            yield from map(Task, parts)
        if worst is None and pruning is None:
            return


def _worst(groups: Sequence[Group], checkpoint: Checkpoint, found: Sensitivity) -> Group | None:
    """The group with the largest KL divergence among those that can be split."""
    kld = {frozenset(p.types): p.kld for p in found.types}
    able = [g for g in groups if split(g, checkpoint)]
    return max(able, key=lambda g: kld.get(frozenset(g.tensors), 0.0), default=None)
