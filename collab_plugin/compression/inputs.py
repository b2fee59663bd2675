"""What `compress` needs beside the plan: the very stats it was made with."""

from __future__ import annotations

from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import as_stored, read_plans_stats, sha256_when_written


def quantizes(plan: Plan, checkpoint: Checkpoint) -> bool:
    """True when some tensor's type changes."""
    return any(
        name in checkpoint.tensors and tensor.type != checkpoint.tensors[name].type.name
        for name, tensor in plan.tensors.items()
    )


def stats_of(
    plan: Plan, checkpoint: Checkpoint, folder: Path | None, given: Stats | Path | None = None
) -> Stats | None:
    """Return the plan's stats: ``given``, or the file of that name in ``folder`` (the plan's own).

    None when nothing is quantized or the plan used none. No other place is looked at: a plan is a
    document that may come from anyone, and paths in documents are not followed.
    """
    if plan.calibration is None or not quantizes(plan, checkpoint):
        return None
    if isinstance(given, Stats):
        if sha256_when_written(given) != plan.calibration.sha256:
            raise CollabError("`stats` are not those that the plan was made with; give those")
        return as_stored(given)
    path = given
    if path is None and folder is not None and plan.calibration.file:
        path = folder / plan.calibration.file
    if path is None:
        raise CollabError("the plan was made with statistics: give them as `stats`")
    if not path.is_file():
        raise CollabError(f"the plan's stats are not at {path}; give them with `stats`")
    return read_plans_stats(path, plan.calibration.sha256, "give that with `stats`")
