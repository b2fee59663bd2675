"""The documents that a plan is made from, brought onto the model; refused when they are of another."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.errors import CollabError
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.stats.match_model import match_model


def of_model(checkpoint: Checkpoint, source: StatsSource | None) -> StatsSource | None:
    """The stats as they count for the model, with what there is to say; CollabError when they are of another."""
    if source is None:
        return None
    found = match_model(source.stats, checkpoint, source.label)
    return replace(source, stats=found.stats, notes=tuple(dict.fromkeys((*source.notes, *found.notes))))


def check_sensitivity(checkpoint: Checkpoint, source: SensitivitySource) -> None:
    """CollabError when the sensitivity document is of another model: its routers differ."""
    if source.sensitivity.model_id != model_id(checkpoint):
        raise CollabError(f"{source.label} was probed on another model than {checkpoint.address}; probe this one")
