"""What a plan is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import SUPER_BLOCK
from collab_plugin.planning.allocators.allocator import Allocator
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.options import OptionValue
from collab_plugin.plans.plan import GroupPolicy, Layers, Order
from collab_plugin.stats.stats import BORROW

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
    which may back off; a given one may not. ``criterion_options`` and ``allocator_options``: by name, of those that
    the criterion and the allocator declare.
    """

    budget: int | None
    criterion: ImportanceCriterion
    allocator: Allocator
    keep: str = "auto"
    layers: Layers = "same"
    experts_used: int | Literal["auto"] | None = None
    criterion_options: Mapping[str, OptionValue] = field(default_factory=dict)
    allocator_options: Mapping[str, OptionValue] = field(default_factory=dict)
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
            raise CollabError("`budget` is missing: give a size such as 103GB, 98.5GiB or 2.5bpw (or `keep_types`)")
        return self.budget
