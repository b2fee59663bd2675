"""A random model with statistics on disk, and a short way to plan on it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import Topology, topology_of
from collab_plugin.planning.allocators.knapsack import KNAPSACK
from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.request import PlanRequest
from collab_plugin.planning.search import make_plan
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.plans.plan import Plan
from collab_plugin.stats.stats_file import write_stats
from small_models.random_moe import imagined_stats


class RememberingKernels(GgmlKernels):
    """ggml's kernels; the same rows are quantized once a session, so that many budgets cost as one."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, NDArray[np.uint8]] = {}

    def quantize(
        self, values: NDArray[np.float32], type_name: str, imatrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes())
        digest.update(type_name.encode() + (b"" if imatrix is None else imatrix.tobytes()))
        key = digest.digest()
        if key not in self._known:
            self._known[key] = super().quantize(values, type_name, imatrix)
        return self._known[key]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model file with its stats file, opened, and a way to plan on it."""

    path: Path
    stats_path: Path
    checkpoint: Checkpoint
    topology: Topology
    source: StatsSource
    kernels: GgmlKernels
    sensitivity: SensitivitySource | None = None

    def planning(
        self, budget: int | None = None, *, source: StatsSource | str | None = "own", **options: Any
    ) -> PlanningInput:
        """What a plan is made from; ``options`` of the request."""
        request = {"criterion": CRITERIA[0], "allocator": KNAPSACK, "threads": 2, **options}
        return PlanningInput(
            self.checkpoint,
            self.topology,
            PlanRequest(budget=budget, **request),
            self.source if isinstance(source, str) else source,
            self.sensitivity,
            self.kernels,
        )

    def plan(self, budget: int | None = None, *, source: StatsSource | str | None = "own", **options: Any) -> Plan:
        return make_plan(self.planning(budget, source=source, **options))


def load(path: Path, stats_path: Path, kernels: GgmlKernels) -> Bench:
    checkpoint = open_gguf(path)
    source = StatsSource.read(stats_path)
    return Bench(path, stats_path, checkpoint, topology_of(checkpoint), source, kernels)


def make_bench(folder: Path, write: Callable[[Path], Path], kernels: GgmlKernels) -> Bench:
    path = write(folder / "model.gguf")
    stats_path = folder / "stats.gguf"
    write_stats(stats_path, imagined_stats(open_gguf(path)))
    return load(path, stats_path, kernels)
