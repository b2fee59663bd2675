"""What `compress` needs beside the plan: the very stats and samples it was made with."""

from __future__ import annotations

from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.plans.plan import Plan
from collab_plugin.repair.samples import BlockSamples, read_samples
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import as_stored, read_plans_stats, sha256_when_written


def quantizes(plan: Plan, checkpoint: Checkpoint) -> bool:
    """True when some tensor's type changes, or its values."""
    return plan.repair is not None or any(
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


def samples_of(plan: Plan, folder: Path | None, given: Path | None) -> BlockSamples | None:
    """Return the samples of the plan's repair, ``given`` or of that name in ``folder``; None where there is none."""
    if plan.repair is None:
        if given is not None:
            raise CollabError("the plan repairs nothing: leave out `samples`, or plan with them")
        return None
    path = given or (folder / plan.repair.file if folder is not None else None)
    if path is None or not path.is_file():
        raise CollabError(f"the plan's samples are not at {path or plan.repair.file}; give them with `samples`")
    if file_sha256(path) != plan.repair.sha256:
        raise CollabError(f"{path} is not the samples file that the plan was made with; give that with `samples`")
    return read_samples(path)


def samples_at(path: Path | None) -> BlockSamples | None:
    """The samples of that file; None without one."""
    return None if path is None else read_samples(path)
