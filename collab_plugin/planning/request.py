"""What a plan is asked for, and whether the statistics that come with it are of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import SUPER_BLOCK
from collab_plugin.planning.allocators.allocator import Allocator
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.pruning import Layers, Order
from collab_plugin.plans.plan import GroupPolicy
from collab_plugin.stats.stats import BORROW, Stats
from collab_plugin.stats.stats_file import as_stored, read_stats, sha256_when_written, stats_sha256

# Without --types: the 256-blocks and Q8_0; the older 32-blocks only where row widths force them.
DEFAULT_TYPES = (*SUPER_BLOCK, "Q8_0")


@dataclass(frozen=True)
class PlanRequest:
    """What the user asked for; the options of `collab-plugin plan` under the same names.

    ``budget`` in bytes, None only with ``keep_types``. ``keep``: "auto" (searched), a share or a count.
    ``layers`` "varied": that is the mean, and each layer keeps its own number.
    ``borrow``: tokens' worth of importance that an expert borrows from its layer, 0 as llama-quantize.
    ``experts_used`` None: scaled with the kept share; "auto": that or the original number, whichever is
    predicted to cost less. ``base`` None: the default floor for experts,
    which may back off; a given one may not.
    """

    budget: int | None
    criterion: ImportanceCriterion
    allocator: Allocator
    keep: str = "auto"
    layers: Layers = "same"
    experts_used: int | Literal["auto"] | None = None
    alpha: float = 0.5
    seed: int = 0
    groups: GroupPolicy | None = None
    base: str | None = None
    floors: Mapping[str, str] = field(default_factory=dict)
    ceilings: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    order: Order = "original"
    keep_types: bool = False
    allow_few_tokens: bool = False
    borrow: float = BORROW
    threads: int = os.cpu_count() or 1

    def needed_budget(self) -> int:
        """Return the budget; CollabError when there is none."""
        if self.budget is None:
            raise CollabError("--budget is missing: give a size such as 103GB, 98.5GiB or 2.5bpw (or --keep-types)")
        return self.budget


@dataclass(frozen=True)
class StatsSource:
    """The stats with where they came from: ``path`` None for stats in memory. ``sha256``: see stats_sha256."""

    stats: Stats
    path: Path | None
    sha256: str

    @classmethod
    def read(cls, path: Path) -> StatsSource:
        stats = read_stats(path)
        return cls(stats, path, stats_sha256(path, stats))

    @classmethod
    def of(cls, stats: Stats) -> StatsSource:
        """Stats in memory, as they would be read after `write_stats`."""
        stats = as_stored(stats)
        return cls(stats, None, sha256_when_written(stats))

    @property
    def label(self) -> str:
        """What to call them in a message."""
        return "the stats" if self.path is None else str(self.path)

    @property
    def file(self) -> str:
        """The name that a plan records: "" for stats in memory."""
        return "" if self.path is None else self.path.name


def check_stats(checkpoint: Checkpoint, topology: Topology, source: StatsSource | None) -> None:
    """CollabError when the stats are of another model: its routers, tensors or shapes differ."""
    if source is None:
        return
    stats = source.stats
    if stats.model_id is not None and stats.model_id != model_id(checkpoint):
        raise CollabError(f"{source.label} was calibrated on another model than {checkpoint.path}; calibrate this one")
    known = [name for name in stats.imatrix if name in checkpoint.tensors]
    if len(known) < len(stats.imatrix) / 2:
        raise CollabError(f"{source.label} names other tensors than {checkpoint.path}: it is of another model")
    for layer, routing in stats.routing.items():
        if layer in topology.moe_layers and len(routing.count) != topology.expert_count:
            raise CollabError(
                f"{source.label} has {len(routing.count)} experts in layer {layer}, "
                f"{checkpoint.path} has {topology.expert_count}: it is of another model"
            )
    for name in known:
        info, entry = checkpoint.tensors[name], stats.imatrix[name]
        try:
            entry.vector(info.shape[0] - 1 if len(info.shape) == 3 else 0, info.shape[-1])
        except ValueError as error:
            raise CollabError(f"{source.label} does not fit {checkpoint.path}: {name}: {error}") from None
