"""What an engine runs of a checkpoint: itself, or a GGUF of it, kept in the user's cache and made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.ability import check_able, check_reads
from collab_plugin.engines.engine import Ability, Engine
from collab_plugin.errors import CollabError
from collab_plugin.formats.user_folders import cache_path
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.progress import OnProgress, silent, track


def cache_folder(name: str) -> Path:
    """Return the folder ``name`` in the user's cache folder, made when missing."""
    folder = cache_path() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CollabError(f"cannot make the cache folder {folder}: {error.strerror}") from None
    return folder


def runnable(
    engine: Engine, ability: Ability, checkpoint: Checkpoint, threads: int, progress: OnProgress = silent
) -> Path:
    """Return what ``engine`` runs of ``checkpoint`` for ``ability``: its own files, fetched when they lie elsewhere, or
    a GGUF as `as_gguf` makes it.

    CollabError, before anything is written, when the engine lacks the ability, is not installed, or reads neither
    format.
    """
    return all_runnable(engine, ability, (checkpoint,), threads, progress)[0]


def all_runnable(
    engine: Engine,
    ability: Ability,
    checkpoints: Sequence[Checkpoint],
    threads: int,
    progress: OnProgress = silent,
) -> tuple[Path, ...]:
    """`runnable` of each; all are checked before the first is converted."""
    check_able(engine, ability)
    for checkpoint in checkpoints:
        if "gguf" not in engine.reads:
            check_reads(engine, checkpoint.format, checkpoint.address)
    engine.check_installed()
    return tuple(
        checkpoint.local() if checkpoint.format in engine.reads else as_gguf(checkpoint, threads, progress)
        for checkpoint in checkpoints
    )


def as_gguf(checkpoint: Checkpoint, threads: int, progress: OnProgress = silent) -> Path:
    """Return the checkpoint's file when it is a GGUF, else a GGUF with the same values in the cache folder.

    The copy is as large as the checkpoint at its stored types; it is reused until the cache folder is
    emptied.
    """
    if checkpoint.format == "gguf":
        return checkpoint.local()
    plan = copy_plan(checkpoint)
    out = cache_folder("gguf") / f"{plan.source.fingerprint.removeprefix('sha256:')[:32]}.gguf"
    if not (out.is_file() and out.stat().st_size == plan.bytes):
        with track(
            progress, f"converting {checkpoint.address} to GGUF (kept in {out.parent})", unit="weights"
        ) as report:
            compress(checkpoint, plan, None, out, kernels=None, threads=threads, report=report)
    return out
