"""What a plan is asked for, and whether the statistics that come with it are of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import SUPER_BLOCK
from collab_plugin.planning.allocators.allocator import Allocator
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.pruning import Layers, Order
from collab_plugin.plans.plan import GroupPolicy
from collab_plugin.stats.match_model import match_model
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
    """The stats with where they came from: ``path`` None for stats in memory. ``sha256``: see stats_sha256.
    ``notes``: what `of_model` did to them."""

    stats: Stats
    path: Path | None
    sha256: str
    notes: tuple[str, ...] = ()

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


def of_model(checkpoint: Checkpoint, source: StatsSource | None) -> StatsSource | None:
    """The stats as they count for the model, with what there is to say; CollabError when they are of another."""
    if source is None:
        return None
    found = match_model(source.stats, checkpoint, source.label)
    return replace(source, stats=found.stats, notes=tuple(dict.fromkeys((*source.notes, *found.notes))))
