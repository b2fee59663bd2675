"""Carry out a plan: read, slice, quantize and write tiles in parallel; whole file or none."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import shard_paths
from collab_plugin.checkpoint.identity import fingerprint
from collab_plugin.compression.journal import Journal
from collab_plugin.compression.tiles import Tile, tile_bytes, tiles_of
from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import sync_folder
from collab_plugin.formats.gguf_layout import Layout
from collab_plugin.plans.artifact import artifact_layout, check_one_count
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_plugin.progress import Advance
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.stats import Stats

SYNC_SECONDS = 5.0


@dataclass(frozen=True)
class Compressed:
    """What was written: file size, seconds, how many tiles an earlier run had finished, and the
    process's largest resident memory so far in bytes (memory-mapped source pages included).
    ``bits_per_weight`` is 8 x ``bytes`` over the original's parameters, pruned ones included.
    """

    path: str
    bytes: int
    seconds: float
    tiles: int
    resumed_tiles: int
    peak_memory: int
    bits_per_weight: float


def compress(
    checkpoint: Checkpoint,
    plan: Plan,
    stats: Stats | None,
    out: Path,
    *,
    kernels: Kernels | None,
    threads: int,
    report: Advance,
) -> Compressed:
    """Write the GGUF that ``plan`` describes to ``out``; importance is borrowed as the plan says.

    Peak memory: threads × (one tile of at most 32 MiB as float32, and its result) plus a constant.
    An interrupted run leaves ``out``.partial and ``out``.journal, and the same call goes on there.
    Raises CollabError for a plan of another source or with its own number of experts in each layer, a full disk,
    values that are not finite.
    """
    check_one_count(plan, "a GGUF")
    if fingerprint(checkpoint) != plan.source.fingerprint:
        raise CollabError(
            f"the plan was made for another checkpoint than {checkpoint.path} "
            f"({plan.source.name}, {plan.source.fingerprint[:19]}...); make it again"
        )
    refuse_source(checkpoint, out)
    if stats is not None and plan.calibration is not None:
        stats = replace(stats, borrow=plan.calibration.borrow)
    layout = artifact_layout(checkpoint, plan)
    tiles = tiles_of(checkpoint, plan, layout)
    start = time.monotonic()
    prepare(plan, checkpoint, kernels)
    job = f"{plan_fingerprint(plan)} {hashlib.sha256(layout.header).hexdigest()}"
    with _output(out, layout, job) as (handle, journal):
        resumed = len(journal.done)
        report(sum(tiles[i].values for i in journal.done), sum(t.values for t in tiles))
        run = _Run(checkpoint, plan, stats, kernels, tiles, handle, journal, report)
        run.all(threads)
    seconds = time.monotonic() - start
    return Compressed(str(out), layout.total, seconds, len(tiles), resumed, peak_memory(), plan.bits_per_weight)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def prepare(plan: Plan, checkpoint: Checkpoint, kernels: Kernels | None) -> None:
    """Build the tables of every type that will be quantized to, from this one thread."""
    if kernels is not None:
        for kind in sorted({t.type for n, t in plan.tensors.items() if t.type != checkpoint.tensors[n].type.name}):
            kernels.prepare(kind)


def refuse_source(checkpoint: Checkpoint, out: Path) -> None:
    """CollabError when ``out`` is the source, lies in it, or is a folder."""
    source = checkpoint.path
    if out.is_dir():
        raise CollabError(f"{out} is a folder; name the file to write")
    if not out.parent.is_dir():
        raise CollabError(f"{out.parent} does not exist; make the folder first")
    files = shard_paths(source) if source.is_file() else []
    if out.exists() and any(out.samefile(file) for file in files):
        raise CollabError(f"{out} is the source itself; the source is never written to")
    if source.is_dir() and out.parent.resolve() == source.resolve():
        raise CollabError(f"{out} lies in the source folder; the source is never written to")


@contextmanager
def _output(out: Path, layout: Layout, job: str) -> Iterator[tuple[int, Journal]]:
    """A preallocated ``out``.partial with its journal; renamed to ``out`` when the body succeeds."""
    part = out.with_name(out.name + ".partial")
    try:
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CollabError(f"cannot write {part}: {error.strerror}") from None
    journal = None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CollabError(f"another run is writing {part}; wait for it or stop it") from None
        # The other run may have finished between open and lock: then this handle is its output.
        if not part.exists() or not os.path.samestat(os.fstat(handle), part.stat()):
            raise CollabError(f"another run has just written {out}; run again to replace it")
        journal = Journal.open(out.with_name(out.name + ".journal"), job, part, layout.total)
        if not journal.done:
            _allocate(handle, part, layout)
        yield handle, journal
        os.fsync(handle)
        part.replace(out)
        sync_folder(out.parent)
        journal.remove()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CollabError(
            f"no space for {out} ({layout.total:,} bytes): free some and run the same command again"
        ) from None
    finally:
        if journal is not None:
            journal.close()
        os.close(handle)


def _allocate(handle: int, part: Path, layout: Layout) -> None:
    have = os.fstat(handle).st_blocks * 512
    free = shutil.disk_usage(part.parent).free
    if layout.total - have > free:
        part.unlink()
        part.with_name(part.name.removesuffix(".partial") + ".journal").unlink(missing_ok=True)
        raise CollabError(f"no space in {part.parent}: {layout.total:,} bytes are needed and {free:,} are free")
    os.ftruncate(handle, 0)
    os.ftruncate(handle, layout.total)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, layout.total)
    os.pwrite(handle, layout.header, 0)


class _Run:
    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        stats: Stats | None,
        kernels: Kernels | None,
        tiles: list[Tile],
        handle: int,
        journal: Journal,
        report: Advance,
    ) -> None:
        self.checkpoint, self.plan, self.stats, self.kernels = checkpoint, plan, stats, kernels
        self.tiles, self.handle, self.journal, self.report = tiles, handle, journal, report
        self.written: list[int] = []
        self.values = sum(tiles[i].values for i in journal.done)
        self.synced = time.monotonic()

    def one(self, index: int) -> int:
        tile = self.tiles[index]
        data = tile_bytes(self.checkpoint, self.plan, tile, self.stats, self.kernels).reshape(-1)
        view, at = memoryview(data.data), tile.offset
        while view:
            count = os.pwrite(self.handle, view, at)
            view, at = view[count:], at + count
        return index

    def all(self, threads: int) -> None:
        """Run every unfinished tile; on any error stop at once, keep what is synced, and raise it."""
        todo = iter([i for i in range(len(self.tiles)) if i not in self.journal.done])
        with ThreadPoolExecutor(threads) as pool:
            running: set[Future[int]] = set()
            try:
                while True:
                    while len(running) < 2 * threads and (index := next(todo, None)) is not None:
                        running.add(pool.submit(self.one, index))
                    if not running:
                        break
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        self.finish(future.result())
            finally:
                for future in running:
                    future.cancel()
                wait(running)
                self.sync()

    def finish(self, index: int) -> None:
        self.written.append(index)
        self.values += self.tiles[index].values
        self.report(self.values)
        if time.monotonic() - self.synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        if self.written:
            os.fsync(self.handle)
            self.journal.add(self.written)
            self.written = []
        self.synced = time.monotonic()
