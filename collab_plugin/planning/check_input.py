"""The documents that a plan is made from, brought onto the model; refused when they are of another."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.errors import CollabError
from collab_plugin.planning.sources import SamplesSource, SensitivitySource, StatsSource
from collab_plugin.plans.plan import Layers
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


def check_samples(checkpoint: Checkpoint, source: SamplesSource, layers: Layers) -> None:
    """CollabError when the samples are of another model, or nothing could be repaired with them."""
    path = source.samples.path
    if source.samples.model_id != model_id(checkpoint):
        raise CollabError(f"{path} was sampled from another model than {checkpoint.address}; sample this one")
    if layers == "varied":
        raise CollabError(
            "`samples` change weights that are written, and with `layers` varied vLLM reads those of the original; "
            "leave them out"
        )
