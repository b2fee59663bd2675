"""Tensors that speak of experts in a way that is not known here: pruning would leave them behind."""

from __future__ import annotations

import re

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role

_SPEAKS = re.compile(r"(?<!sh)exps?[._]|expert")


def unknown_tables(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of such tensors in layers with experts: what newer architectures add."""
    with_experts = {info.layer for info in checkpoint.tensors.values() if info.role == Role.EXPERT}
    return tuple(
        name
        for name, info in checkpoint.tensors.items()
        if info.role == Role.OTHER and info.layer in with_experts and _SPEAKS.search(name)
    )


def check_prunable(checkpoint: Checkpoint) -> None:
    """CollabError when experts of ``checkpoint`` cannot be dropped without leaving something that speaks of them."""
    if tables := unknown_tables(checkpoint):
        raise CollabError(
            f"{tables[0]} speaks of experts in a way that is not known here, so none can be dropped: `keep` 100%"
        )
