"""Whether an artifact runs on a machine, with how much context, and at which speed at most."""

from __future__ import annotations

from dataclasses import dataclass, replace

from collab_plugin.errors import CollabError
from collab_plugin.placement.artifact_shape import ArtifactShape
from collab_plugin.placement.machines import Machine
from collab_plugin.placement.memory import Memory, memory_of
from collab_plugin.placement.run_setup import CELLS, RunSetup


@dataclass(frozen=True)
class TierUse:
    """Bytes that lie in a tier, and those of them that making one token reads."""

    name: str
    bytes: int
    read: int


@dataclass(frozen=True)
class Fit:
    """``spare``: bytes left over, negative where it does not fit. ``largest_context``: tokens a sequence that fit, 0
    where none do, None where the cache is not known. ``tokens_per_second``: the roof, with an empty cache and with a
    full one: one sequence, every active weight read once a token at full bandwidth, nothing else."""

    machine: Machine
    memory: Memory
    active_bytes: int
    tiers: tuple[TierUse, ...]
    spare: int
    largest_context: int | None
    tokens_per_second: tuple[float, float]

    @property
    def fits(self) -> bool:
        """Nothing is missing."""
        return self.spare >= 0


def fit(shape: ArtifactShape, machine: Machine, setup: RunSetup) -> Fit:
    """Weigh ``shape`` against ``machine``.

    Everything but routed experts lies in the fastest tier, experts fill what is left from the fastest on and are read
    alike, so a tier's share of their bytes is its share of their reads.
    """
    memory = memory_of(shape, setup, {})
    uses = _lay_out(shape, memory, machine)
    cached = (memory.kv_bytes_per_token or 0) * setup.context
    first = machine.tiers[0]
    empty = sum(use.read / tier.bandwidth for use, tier in zip(uses, machine.tiers, strict=True))
    full = empty + cached / first.bandwidth
    return Fit(
        machine,
        memory,
        shape.active_bytes,
        uses,
        machine.available - memory.total,
        None if memory.kv_bytes_per_token is None else _largest_context(shape, machine, setup),
        (1 / empty, 1 / full),
    )


def _lay_out(shape: ArtifactShape, memory: Memory, machine: Machine) -> tuple[TierUse, ...]:
    experts = shape.expert_bytes
    always = memory.total - experts
    read_always = shape.active_bytes - _experts_read(shape)
    uses = []
    left = experts
    for at, tier in enumerate(machine.tiers):
        room = tier.available - (always if at == 0 else 0)
        last = at == len(machine.tiers) - 1
        here = left if last else max(0, min(left, room))
        read = _experts_read(shape) * here // experts if experts else 0
        uses.append(TierUse(tier.name, here + (always if at == 0 else 0), read + (read_always if at == 0 else 0)))
        left -= here
    return tuple(uses)


def _experts_read(shape: ArtifactShape) -> int:
    return shape.expert_bytes * shape.used // shape.experts if shape.experts else 0


def _largest_context(shape: ArtifactShape, machine: Machine, setup: RunSetup) -> int:
    """In steps of the cache's, at most what the model was trained for where its metadata says."""
    key = f"{shape.architecture}.context_length"
    trained = shape.metadata[key].value if shape.metadata and key in shape.metadata else 2**22
    low, high = 0, max(int(trained), CELLS) // CELLS
    while low < high:
        middle = (low + high + 1) // 2
        if memory_of(shape, replace(setup, context=middle * CELLS), {}).total <= machine.available:
            low = middle
        else:
            high = middle - 1
    return low * CELLS


def budget_for(shape: ArtifactShape, available: int, setup: RunSetup) -> int:
    """Bytes of file that leave room for all else in ``available`` bytes: what `plan` may spend. ``shape``: of the
    original, whose cache is that of every plan, and whose compute buffer is the largest.

    CollabError when nothing is left, or the cache's size is not known.
    """
    memory = memory_of(shape, setup, {})
    if missing := [part.name for part in memory.runtime if part.bytes is None]:
        raise CollabError(f"the {missing[0]} of this model is not known: give `budget` in place of `memory`")
    rest = sum(part.bytes or 0 for part in memory.runtime)
    if rest >= available:
        raise CollabError(
            f"KV cache, compute buffer and reserve take {rest:,} bytes of the {available:,} that there are; lower "
            "`context` or `sequences`"
        )
    return available - rest
