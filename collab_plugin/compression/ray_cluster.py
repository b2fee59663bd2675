"""The tiles of a GGUF on a Ray cluster.

Workers read the model and write their ranges of the output, both on storage that all of them see.

Which worker does what, and what is done again when one is lost, is Ray's affair. A worker has written and synced its
tiles before it tells their checksums, so that a tile that is told is on the disk, and one that is done twice has the
same bytes.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression.prepare_kernels import prepare
from collab_plugin.compression.ray_connection import TRIES, check_cores, connected, cores_of, result
from collab_plugin.compression.tiles import Tile, keep_freed_memory, write_tile
from collab_plugin.compression.whole_output import SizedFile
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.planned_source import as_planned
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.samples import BlockSamples
from collab_plugin.stats.importance_matrix import ImportanceMatrix

MOST_VALUES = 2**26
"""Weights of a task at most, but for a tile that is larger: seconds to a minute of a core."""
TASKS_A_CORE = 32
"""At least so many tasks for each core, where there are as many tiles: the last ones end together."""
_SAME_STORAGE = "workers read the model and write the output on storage that all of them see, under the same path"


@dataclass(frozen=True)
class RayCluster:
    """``address``: of the head ("ray://head:10001", "head:6379"), "auto", or "local". What workers do with it:
    ``open_model`` opens the model, ``kernels`` gives what quantizes, ``samples`` those of a plan that repairs; each is
    called once by each worker, and is a function that can be pickled."""

    address: str
    open_model: Callable[[], Checkpoint]
    kernels: Callable[[], Kernels | None]
    samples: Callable[[], BlockSamples | None]


@dataclass(frozen=True)
class ClusterJob:
    """What every task needs: the ``plan``, its importance matrix, and all ``tiles``; ``parts``: the output's files with
    where each begins (`Shards.starts`). ``together``: layers by the names of tensors that are repaired; a task has all
    tiles of one, and takes ``threads`` cores."""

    cluster: RayCluster
    plan: Plan
    imatrix: ImportanceMatrix | None
    tiles: Sequence[Tile]
    parts: Sequence[tuple[str, int]]
    together: Mapping[str, int]
    threads: int
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


class TileWorker:
    """A worker's process: the model, opened once, and the output's files."""

    def __init__(self, job: ClusterJob) -> None:
        self.job = job
        where = f"on {socket.gethostname()}"
        try:
            handles = [os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0)) for path, _ in job.parts]
        except OSError as error:
            raise CollabError(f"{error.filename} {where}: {error.strerror}; {_SAME_STORAGE}") from None
        self.files = [
            (SizedFile(handle, Path(path)), start) for handle, (path, start) in zip(handles, job.parts, strict=True)
        ]
        checkpoint = as_planned(job.cluster.open_model(), job.plan)
        samples, self.kernels = job.cluster.samples(), job.cluster.kernels()
        self._while_alive = ExitStack()
        self._while_alive.enter_context(one_blas_thread(samples is not None))
        if samples is not None:
            rounding = Rounding(checkpoint, job.plan, job.imatrix, self.kernels)
            checkpoint = RepairedCheckpoint(checkpoint, job.plan, samples, rounding, threads=job.threads)
            prepare(job.plan, checkpoint, self.kernels)
        self.checkpoint = checkpoint
        keep_freed_memory()

    def do(self, indices: Sequence[int]) -> list[tuple[int, str]]:
        """Write these tiles and sync them; their checksums."""
        found, touched = [], set()
        if isinstance(self.checkpoint, RepairedCheckpoint):
            for layer in {layer for i in indices if (layer := self.job.together.get(self._tensor(i))) is not None}:
                self.checkpoint.repair(layer)  # in many threads; what is left to do for its tiles is in this one
        for index in indices:
            tile = self.job.tiles[index]
            file, start = next(pair for pair in reversed(self.files) if pair[1] <= tile.offset)

            def write(at: int, data: memoryview, file: SizedFile = file, start: int = start) -> None:
                file.write(at - start, data)

            made = write_tile(self.checkpoint, self.job.plan, tile, self.job.imatrix, self.kernels, write)
            touched.add(file)
            found.append((index, made))
        for file in touched:
            file.sync()
        return found

    def _tensor(self, index: int) -> str:
        return self.job.tiles[index].tensor

    def close(self) -> None:
        """Let the output's files go."""
        self._while_alive.close()
        for file, _ in self.files:
            os.close(file.handle)


_worker: TileWorker | None = None


def _do(key: str, held: Sequence[Any], indices: Sequence[int]) -> list[tuple[int, str]]:
    """A task, in a worker's process, which keeps what it opened for the next one. ``held``: the job where Ray keeps it,
    fetched when it is another than the last one's: what is passed outright is unpacked for each task."""
    global _worker
    if _worker is None or _worker.job.key != key:
        import ray

        if _worker is not None:
            _worker.close()
        _worker = TileWorker(ray.get(held[0]))
    return _worker.do(indices)


def finished_on(job: ClusterJob, todo: Sequence[int]) -> Generator[list[tuple[int, str]], None, None]:
    """Do the tiles ``todo`` on the cluster; (tile, checksum) of those that are on the disk, a task at a time.

    Raises CollabError without Ray, for a cluster that is not there, for what a task says, and where a task lost its
    worker too often.
    """
    with connected(job.cluster.address) as ray:
        if job.together:
            check_cores(ray, job.threads)
        cores = cores_of(ray)
        shared = ray.put(job)
        task = ray.remote(max_retries=TRIES)(_do)
        waiting, running = tasks_of(job, todo, cores), set[Any]()
        try:
            while True:
                while len(running) < 2 * cores and (found := next(waiting, None)):
                    indices, takes = found
                    running.add(task.options(num_cpus=takes).remote(job.key, [shared], indices))
                if not running:
                    return
                ready, rest = ray.wait(list(running), num_returns=1)
                running = set(rest)
                done: list[tuple[int, str]] = result(ray, ready[0])
                yield done
        finally:
            for left in running:
                ray.cancel(left, force=False)


def tasks_of(job: ClusterJob, todo: Sequence[int], cores: int) -> Iterator[tuple[list[int], int]]:
    """Tiles of each task, and the cores that it takes: whole layers that are repaired, which take longest, and then
    what is left."""
    layers: dict[int, list[int]] = {}
    left: list[int] = []
    for index in todo:
        layer = job.together.get(job.tiles[index].tensor)
        (left if layer is None else layers.setdefault(layer, [])).append(index)
    for indices in layers.values():
        yield indices, job.threads
    for indices in _batches(job.tiles, left, cores):
        yield indices, 1


def _batches(tiles: Sequence[Tile], todo: Sequence[int], cores: int) -> Iterator[list[int]]:
    """Tiles that lie behind each other, so that a worker reads and writes in order."""
    most = min(MOST_VALUES, sum(tiles[i].values for i in todo) // (TASKS_A_CORE * cores))
    batch: list[int] = []
    values = 0
    for index in todo:
        if batch and values + tiles[index].values > most:
            yield batch
            batch, values = [], 0
        batch.append(index)
        values += tiles[index].values
    if batch:
        yield batch


def output_parts(files: Sequence[Path], starts: Sequence[int]) -> list[tuple[str, int]]:
    """``files`` as other machines find them, with where each begins."""
    return [(str(file.resolve()), start) for file, start in zip(files, starts, strict=True)]
