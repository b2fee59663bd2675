"""What was measured of this machine, and how far forecasts of its speed were off: kept in the cache folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import JsonFormat
from collab_plugin.formats.user_folders import cache_path

MOST_RUNS = 50
_BYTES = 2**20


@dataclass(frozen=True)
class ReadMatrix:
    """Matrices of one shape, ``rows`` by ``columns`` of ggml's ``type``, of which a token is multiplied with ``used``
    at a time: experts of a layer, or 1. ``bytes``: what one token reads of all of them."""

    type: str
    columns: int
    rows: int
    used: int
    bytes: float


@dataclass(frozen=True)
class DeviceSpeed:
    """``kernels``: ggml type -> bytes of weights a second that the device multiplies one token with. ``unified``: its
    memory is the processor's."""

    name: str
    kind: Literal["gpu", "host"]
    unified: bool
    kernels: Mapping[str, float]


@dataclass(frozen=True)
class SpeedRun:
    """Tokens a second that were expected, and that a run then had."""

    artifact: str
    expected: float
    actual: float


@dataclass(frozen=True)
class MachineProfile:
    """``threads`` it was measured with; bytes a second: ``memory``, and ``disk`` by bytes of a block, read at random.
    ``devices`` as ``engine`` sees them; ``node_seconds``: what one small operation of a graph takes."""

    engine: str
    threads: int
    memory: float
    disk: Mapping[int, float]
    devices: tuple[DeviceSpeed, ...]
    node_seconds: float

    def disk_speed(self, block: float) -> float | None:
        """Bytes a second in blocks of about this size; the nearest measured one."""
        if not self.disk:
            return None
        return self.disk[min(self.disk, key=lambda size: abs(size - block))]


@dataclass(frozen=True)
class SpeedRuns:
    """The last runs with a placement."""

    runs: tuple[SpeedRun, ...]


_PROFILE = JsonFormat("collab-plugin machine", 1, MachineProfile, _BYTES)
_RUNS = JsonFormat("collab-plugin runs", 1, SpeedRuns, _BYTES)


def _file(name: str) -> Path:
    return cache_path() / f"{name}.json"


def write_profile(profile: MachineProfile) -> None:
    """Keep it for forecasts without a measurement."""
    _file("machine").parent.mkdir(parents=True, exist_ok=True)
    _PROFILE.write(_file("machine"), profile)


def read_profile(threads: int) -> MachineProfile | None:
    """What was measured with as many threads; None where nothing usable is kept."""
    with suppress(CollabError):
        found = _PROFILE.read(_file("machine"))
        return found if found.threads == threads else None
    return None


def add_run(run: SpeedRun) -> None:
    """Remember how a forecast did. Where the cache folder cannot be written, nothing is remembered."""
    kept = (*_runs(), run)[-MOST_RUNS:]
    with suppress(CollabError, OSError):
        _file("runs").parent.mkdir(parents=True, exist_ok=True)
        _RUNS.write(_file("runs"), SpeedRuns(kept))


def forecast_error() -> float | None:
    """Median of |actual / expected - 1| over the runs that are remembered; None where there is none."""
    off = [abs(run.actual / run.expected - 1) for run in _runs() if run.expected > 0]
    return median(off) if off else None


def _runs() -> tuple[SpeedRun, ...]:
    with suppress(CollabError):
        return _RUNS.read(_file("runs")).runs
    return ()
