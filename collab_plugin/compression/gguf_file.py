"""Carry out a plan: read, slice, quantize and write tiles in parallel; whole file or none."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import shard_paths
from collab_plugin.compression.journal import Journal, checksum
from collab_plugin.compression.journaled_work import JournaledWork
from collab_plugin.compression.peak_memory import peak_memory
from collab_plugin.compression.prepare_kernels import prepare
from collab_plugin.compression.ray_cluster import ClusterJob, RayCluster, finished_on, output_parts
from collab_plugin.compression.shards import ShardFiles, Shards, shards_of
from collab_plugin.compression.tiles import Tile, keep_freed_memory, tiles_of, write_tile
from collab_plugin.compression.whole_output import allocate, check_space, part_of, sized_file, whole_outputs
from collab_plugin.errors import CollabError
from collab_plugin.formats.output_path import check_output
from collab_plugin.plans.artifact import artifact_metadata, artifact_tensors, check_one_count
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_plugin.plans.planned_source import as_planned
from collab_plugin.progress import Advance
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.samples import BlockSamples
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.match_model import match_model
from collab_plugin.stats.stats import Stats


@dataclass(frozen=True)
class Compressed:
    """What was written: file size, seconds, how many tiles an earlier run had finished, and the
    process's largest resident memory so far in bytes.
    ``bits_per_weight`` is 8 x the plan's bytes over the original's parameters, pruned ones included. ``path``: the
    first of ``files``; ``bytes``: of all.
    """

    path: str
    bytes: int
    seconds: float
    tiles: int
    resumed_tiles: int
    peak_memory: int
    bits_per_weight: float
    files: int = 1


def compress(
    checkpoint: Checkpoint,
    plan: Plan,
    stats: Stats | None,
    out: Path,
    *,
    kernels: Kernels | None,
    threads: int,
    report: Advance,
    samples: BlockSamples | None = None,
    split: int | None = None,
    cluster: RayCluster | None = None,
) -> Compressed:
    """Write the GGUF that ``plan`` describes to ``out``; importance is borrowed as the plan says.

    ``samples``: those that the plan's repair names, if it has one. ``split``: bytes that no file may exceed; where one
    is not enough there are several, NAME-0000i-of-0000N.gguf. ``cluster``: where tiles are made in place of ``threads``
    here, with the same bytes.

    Peak memory: threads × (one tile of at most 32 MiB as float32, and its result) plus a constant.
    An interrupted run leaves ``out``.partial and ``out``.journal, and the same call goes on there.
    Raises CollabError for a plan of another source or with its own number of experts in each layer, a full disk,
    values that are not finite.
    """
    check_one_count(plan, "a GGUF")
    checkpoint = as_planned(checkpoint, plan)
    refuse_source(checkpoint, out)
    if stats is not None:
        stats = match_model(stats, checkpoint, "the plan's stats file").stats
    imatrix = ImportanceMatrix.of(stats, plan.calibration.borrow if plan.calibration else 0.0)
    shards = shards_of(artifact_metadata(checkpoint, plan), artifact_tensors(checkpoint, plan), split)
    files = shards.files(out)
    for file in files:
        refuse_source(checkpoint, file)
    tiles = tiles_of(checkpoint, plan, shards.offsets)
    start = time.monotonic()
    checkpoint.check_conversion()
    if samples is not None:
        rounding = Rounding(checkpoint, plan, imatrix, kernels)
        checkpoint = RepairedCheckpoint(checkpoint, plan, samples, rounding, threads=threads)
    if cluster is None:
        prepare(plan, checkpoint, kernels)
    keep_freed_memory()
    source = source_state(checkpoint)
    job = f"{plan_fingerprint(plan)} {hashlib.sha256(shards.header).hexdigest()} {source}"
    with one_blas_thread(samples is not None), _output(out, files, shards, job) as (output, journal):
        _keep_what_is_whole(output, shards, tiles, journal)
        resumed = len(journal.done)

        def one(index: int) -> str:
            return write_tile(checkpoint, plan, tiles[index], imatrix, kernels, output.write)

        work = JournaledWork(one, [tile.values for tile in tiles], output.sync, journal, report)
        if cluster is None:
            work.all(threads)
        else:
            parts = output_parts([part_of(file) for file in files], shards.starts)
            together = checkpoint.repaired if isinstance(checkpoint, RepairedCheckpoint) else {}
            job_of_all = ClusterJob(cluster, plan, imatrix, tiles, parts, dict(together), threads)
            with closing(finished_on(job_of_all, work.todo)) as finished:
                work.done_by(finished)
        if source_state(checkpoint) != source:
            raise CollabError(
                f"{checkpoint.path} was changed while it was read, so nothing that was written is trusted: run "
                "the same command again"
            )
    seconds = time.monotonic() - start
    return Compressed(
        str(files[0]), shards.total, seconds, len(tiles), resumed, peak_memory(), plan.bits_per_weight, len(files)
    )


def source_state(checkpoint: Checkpoint) -> str:
    """Names, sizes and times of change of the model's files, as one hash: what an interrupted run read must be what
    the next one reads. Of a model elsewhere its address, which names the revision where there is one."""
    path = checkpoint.path
    if checkpoint.address != str(path):
        return hashlib.sha256(checkpoint.address.encode()).hexdigest()
    files = shard_paths(path) if path.is_file() else sorted(path.glob("*.safetensors"))
    states = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _keep_what_is_whole(output: ShardFiles, shards: Shards, tiles: list[Tile], journal: Journal) -> None:
    """Forget the finished tiles whose bytes are not what was written, and write again what is no tile's."""
    if not journal.done:
        return
    for index, expected in list(journal.done.items()):
        if index >= len(tiles) or checksum(output.read(tiles[index].offset, tiles[index].nbytes)) != expected:
            del journal.done[index]
    for at, data in shards.fixed():
        output.write(at, memoryview(data))


def refuse_source(checkpoint: Checkpoint, out: Path) -> None:
    """CollabError when ``out`` is the source, lies in it, or cannot be written."""
    source = checkpoint.path
    check_output(out)
    files = shard_paths(source) if source.is_file() else []
    if out.exists() and any(out.samefile(file) for file in files):
        raise CollabError(f"{out} is the source itself; the source is never written to")
    if source.is_dir() and out.parent.resolve() == source.resolve():
        raise CollabError(f"{out} lies in the source folder; the source is never written to")


@contextmanager
def _output(out: Path, files: tuple[Path, ...], shards: Shards, job: str) -> Iterator[tuple[ShardFiles, Journal]]:
    """Preallocated ``files``, each .partial, with the journal of ``out``; named when the body succeeds."""
    path = out.with_name(out.name + ".journal")
    sizes = [one.total for one in shards.layouts]
    with (
        whole_outputs(out, files, done_with=path) as parts,
        Journal.open(path, job, dict(zip(parts, sizes, strict=True))) as journal,
        ExitStack() as stack,
    ):
        if not journal.done:
            _check_space(parts, path, shards.total)
        opened = [stack.enter_context(sized_file(part, out)) for part in parts]
        if not journal.done:
            for file, one in zip(opened, shards.layouts, strict=True):
                allocate(file, out, one.total, one.header)
        yield ShardFiles(shards, opened), journal


def _check_space(parts: tuple[Path, ...], journal: Path, total: int) -> None:
    """What is there already of an output that is begun anew counts as free; nothing is left when it is not enough."""
    found = [part.stat() for part in parts if part.exists()]
    have = sum(getattr(stat, "st_blocks", 0) * 512 for stat in found)  # not its size: it may have holes
    try:
        check_space(journal.parent, total - have)
    except CollabError:
        for path in (*parts, journal):
            path.unlink(missing_ok=True)
        raise
