"""Adds to collab-plugin a criterion, a placement policy, a checkpoint format and a family of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from collab_example.dots1 import DOTS1
from collab_example.zipped import ZIPPED_GGUF
from collab_plugin import (
    CheckpointFormat,
    CriterionOptions,
    Family,
    ImportanceCriterion,
    LayerRouting,
    LayerUse,
    Option,
    PlacementPolicy,
    hookimpl,
)


def least_used_first(routing: LayerRouting, options: CriterionOptions) -> NDArray[np.float64]:
    sign = 1 if options["most"] else -1
    return sign * routing.count.astype(np.float64)


@hookimpl
def collab_register_criteria(register: Callable[[ImportanceCriterion], None]) -> None:
    most = Option("most", 0, "1 keeps what is used most instead")
    register(ImportanceCriterion("least-used", "keeps what is used least", least_used_first, options=(most,)))


def spread(use: LayerUse, number: int) -> Sequence[int]:
    """Experts at equal distances."""
    return [index * use.experts // number for index in range(number)]


@hookimpl
def collab_register_placement_policies(register: Callable[[PlacementPolicy], None]) -> None:
    register(PlacementPolicy("spread", "experts at equal distances", spread))


@hookimpl
def collab_register_checkpoint_formats(register: Callable[[CheckpointFormat], None]) -> None:
    register(ZIPPED_GGUF)


@hookimpl
def collab_register_families(register: Callable[[Family], None]) -> None:
    register(DOTS1)
