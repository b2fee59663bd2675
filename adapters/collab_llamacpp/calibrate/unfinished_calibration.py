"""What a calibration has done so far, kept in a file from time to time: the same one goes on there after a stop."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.collector import Collector
from collab_llamacpp.calibrate.job_types import CalibrateJob
from collab_plugin.checkpoint.gguf import shard_paths

AT_MOST = 0.05
"""Share of the time that is spent on keeping: a large model's sums take gigabytes."""
JOB, DONE = "job", "done"


class UnfinishedCalibration:
    """The file ``job.unfinished``; without one nothing is kept. It counts for the same job on the same ``windows`` of
    the same model file alone, and one that is damaged does not count."""

    def __init__(self, job: CalibrateJob, windows: Sequence[NDArray[np.int64]]) -> None:
        self._path = Path(job.unfinished) if job.unfinished else None
        self._key = _key(job, windows) if job.unfinished else ""
        self._least = job.save_seconds
        self._next = time.monotonic() + self._least

    def resume(self, collector: Collector) -> int:
        """Give ``collector`` what was kept; how many windows that were."""
        if self._path is None:
            return 0
        _new(self._path).unlink(missing_ok=True)  # of a run that was stopped while it wrote
        if not self._path.is_file():
            return 0
        try:
            with np.load(self._path, allow_pickle=False) as found:
                if str(found[JOB]) != self._key:
                    return 0
                arrays = {name: found[name] for name in found.files if name not in (JOB, DONE)}
                done = int(found[DONE])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return 0
        collector.restore(arrays)
        return done

    def keep(self, collector: Collector, done: int) -> None:
        """Keep what ``done`` windows gave, when it is time to."""
        begun = time.monotonic()
        if self._path is None or begun < self._next:
            return
        arrays: dict[str, Any] = {JOB: np.array(self._key), DONE: np.array(done), **collector.state()}
        part = _new(self._path)
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(self._path)
        took = time.monotonic() - begun
        self._next = time.monotonic() + (max(self._least, took / AT_MOST) if self._least else 0)


def _new(path: Path) -> Path:
    """What is written before it takes the place of ``path``."""
    return path.with_name(path.name + ".new")


def _key(job: CalibrateJob, windows: Sequence[NDArray[np.int64]]) -> str:
    digest = hashlib.sha256()
    for path in shard_paths(Path(job.model)):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    what = (job.experts, job.architecture, job.kv_type, job.together, job.trace, job.cut.ctx)
    digest.update(repr(what).encode())
    for window in windows:
        digest.update(np.ascontiguousarray(window, np.int64).tobytes())
    return digest.hexdigest()
