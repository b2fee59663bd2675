"""Where the time of a run of `compress` goes: seconds of the processor and of the clock by stage, over all threads."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels

from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint, open_safetensors
from collab_plugin.compression import gguf_file
from collab_plugin.compression import tiles as tiles_module
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.journaled_work import JournaledWork
from collab_plugin.compression.shards import ShardFiles
from collab_plugin.compression.tiles import Tile, tiles_of
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.progress import untold
from collab_plugin.stats.stats import ImatrixEntry, Stats

STAGES = ("read", "decode", "quantize", "checksum", "write", "rest")


class StageTimes:
    """Adds up calls; a stage inside another counts once, in its own, and stages in `uncounted` not at all."""

    def __init__(self) -> None:
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.wall: defaultdict[str, float] = defaultdict(float)
        self._inside = threading.local()
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if getattr(self._inside, "uncounted", False):
            yield
            return
        outer = getattr(self._inside, "taken", None)
        self._inside.taken = [0.0, 0.0]
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            inner = self._inside.taken
            with self._lock:
                self.cpu[name] += cpu - inner[0]
                self.wall[name] += wall - inner[1]
            if outer is not None:
                outer[0], outer[1] = outer[0] + cpu, outer[1] + wall
            self._inside.taken = outer

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Nothing that this thread does counts while the with statement lasts."""
        self._inside.uncounted = True
        try:
            yield
        finally:
            self._inside.uncounted = False

    def watch_tiles(self, counts: Callable[[str], bool]) -> None:
        """Count tiles as stage "rest", less the stages in them; none of tensors that do not count."""
        tiles: list[Tile] = []
        original, listed = JournaledWork.__init__, tiles_of

        def kept(*args: Any) -> list[Tile]:
            tiles[:] = listed(*args)
            return tiles

        def counted(work: JournaledWork, one: Callable[[int], str], *args: Any) -> None:
            def watched(index: int) -> str:
                with self.stage("rest") if counts(tiles[index].tensor) else self.uncounted():
                    return one(index)

            original(work, watched, *args)

        setattr(gguf_file, "tiles_of", kept)  # noqa: B010  # type checkers refuse to replace a function
        setattr(JournaledWork, "__init__", counted)  # noqa: B010

    def watch(self, owner: Any, function: str, name: str) -> None:
        """Count what ``owner.function`` takes as stage ``name`` from now on."""
        original: Callable[..., Any] = getattr(owner, function)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return original(*args, **kwargs)

        setattr(owner, function, counted)


def ones_matrix(checkpoint: SafetensorsCheckpoint) -> Stats:
    """An importance matrix of ones, for the types that want one: their kernels do the same work as with any other."""
    entries = {}
    for name, info in checkpoint.tensors.items():
        if info.layer is not None and len(info.shape) > 1 and "gate_inp" not in name:
            slices = info.shape[0] if info.by_expert else 1
            columns = info.shape[-1] * (info.shape[0] if len(info.shape) == 3 and not info.by_expert else 1)
            entries[name] = ImatrixEntry(np.ones((slices, columns), np.float32), np.ones(slices, np.float32))
    return Stats({}, entries, 512, 512, ("ones",), None, "none")


def main() -> None:
    """MODEL PLAN OUT THREADS IMATRIX(0|1) TYPE in; the figures as JSON out, of stages of tensors at TYPE alone."""
    folder, plan_path, out, threads, weighed, counted = sys.argv[1:]
    checkpoint, plan, times = open_safetensors(Path(folder)), read_plan(plan_path), StageTimes()
    kernels = GgmlKernels()
    for kind in {tensor.type for tensor in plan.tensors.values()} & set(kernels.types()):
        kernels.prepare(kind)  # tables are made once for a model
    times.watch(LocalFile, "read", "read")
    times.watch(SafetensorsCheckpoint, "read", "decode")
    times.watch(SafetensorsCheckpoint, "read_raw", "decode")
    times.watch(GgmlKernels, "quantize", "quantize")
    times.watch(tiles_module, "checksum", "checksum")
    times.watch(ShardFiles, "write", "write")
    times.watch_tiles(lambda name: plan.tensors[name].type == counted)
    stats = ones_matrix(checkpoint) if weighed == "1" else None
    start, cpu = time.perf_counter(), time.process_time()
    done = compress(
        checkpoint, plan, stats, Path(out), kernels=kernels, threads=int(threads), report=untold
    )  # fmt: skip
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu,
                "peak_memory": done.peak_memory,
                "bytes": done.bytes,
                "cpu": dict(times.cpu),
                "wall": dict(times.wall),
            }
        )
    )


if __name__ == "__main__":
    main()
