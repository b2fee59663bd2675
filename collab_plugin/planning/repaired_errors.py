"""What repair with samples leaves of each type's error in the experts of this model, measured before types are chosen.

Types gain unlike: where a kernel takes little care (Q2_K, Q3_K) feedback takes away most, so with samples other types
are the best of their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import geometric_mean

import numpy as np

from collab_plugin.planning.measure.groups import part_of
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.sources import SamplesSource
from collab_plugin.planning.type_choices import type_choices
from collab_plugin.planning.type_limits import Limits
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.repair.held_out import F32, HeldOut
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.stats.importance_matrix import importance_vector

LAYERS = 3
"""Layers that are looked at: the first and the last that were sampled, and the one in the middle."""
SHARES = (0.25, 0.75)
"""An expert is looked at that stands at each of these shares of all selections, those of the busiest first."""
DOWN = "expert down"
LEAST = 1e-6
NOT_ROUNDED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class RepairedErrors:
    """``shares``: of the error of a type that repair leaves, by part of the model and type. ``tensors``: those that it
    holds for. ``experts``: how many it was measured on."""

    shares: Mapping[tuple[str, str], float]
    tensors: Mapping[str, str]
    experts: int

    def left(self, name: str, kind: str) -> float:
        """The share of the tensor's error at the type ``kind``; 1 where nothing is repaired."""
        return self.shares.get((self.tensors.get(name, ""), kind), 1.0)

    @property
    def source(self) -> str:
        """One line for the plan; "" where nothing is repaired."""
        if not self.shares:
            return ""
        low, high = min(self.shares.values()), max(self.shares.values())
        return f"repair leaves {low:.2f} to {high:.2f} of experts' errors, by type, measured on {self.experts} experts"


NONE = RepairedErrors({}, {}, 0)


def repaired_errors(planning: PlanningInput, progress: OnProgress = silent) -> RepairedErrors:
    """Measured on the planning's samples; `NONE` without, or where nothing is quantized.

    Each type that experts may get is tried on at most 6 experts, and of each on 512 hidden values at most. The mean
    over experts is geometric. The same whatever the number of threads.
    """
    source = planning.samples_source
    if source is None or planning.request.keep_types:
        return NONE
    tensors = _repaired_tensors(planning, source)
    tried = _tried(planning, tensors)
    with one_blas_thread():
        experts = [e for layer in _layers(list(source.samples.layers)) for e in _experts(planning, source, layer)]
        jobs = [(expert, *pair) for pair in tried for expert in experts]
        found: dict[tuple[str, str], list[float]] = {pair: [] for pair in tried}
        with (
            track(progress, "measuring what repair leaves", unit="errors") as report,
            ThreadPoolExecutor(planning.request.threads) as pool,
        ):
            results = pool.map(lambda job: _left(planning, *job), jobs)
            for done, ((_, *pair), left) in enumerate(zip(jobs, results, strict=True), 1):
                found[pair[0], pair[1]] += [left] if left is not None else []
                report(done, len(jobs))
    shares = {pair: geometric_mean(np.maximum(each, LEAST)) for pair, each in found.items() if each}
    return RepairedErrors(shares, tensors, len(experts))


def _repaired_tensors(planning: PlanningInput, source: SamplesSource) -> dict[str, str]:
    """Experts' matrices of sampled layers, and the part that each is of."""
    return {
        name: part_of(info)
        for name, info in planning.checkpoint.tensors.items()
        if info.by_expert and len(info.shape) == 3 and info.layer in source.samples.layers
    }


def _tried(planning: PlanningInput, tensors: Mapping[str, str]) -> list[tuple[str, str]]:
    """(part, type) that may be rounded."""
    request, stored = planning.request, planning.checkpoint.tensors
    choices = type_choices(planning, Limits.of(request.base, request.floors, request.ceilings))
    return sorted(
        {
            (part, kind)
            for name, part in tensors.items()
            for kind in choices.get(name, ())
            if kind not in NOT_ROUNDED and kind != stored[name].type.name
        }
    )


def _layers(sampled: Sequence[int]) -> list[int]:
    return [sampled[i] for i in np.unique(np.linspace(0, len(sampled) - 1, LAYERS).astype(int))]


def _experts(planning: PlanningInput, source: SamplesSource, layer: int) -> list[HeldOut]:
    """Those at `SHARES` of the layer's selections that got enough tokens."""
    t, samples = planning.topology, source.samples
    sample = samples.layers[layer]
    sample.check(samples.path)
    block = RoutedBlock(planning.checkpoint, t, layer)
    choice = block.choose(np.asarray(sample.inputs), tuple(range(t.expert_count)), t.experts_used, grouped=t.groups > 1)
    counts = np.bincount(choice.ids.reshape(-1), minlength=t.expert_count)
    order = np.argsort(-counts, kind="stable")
    at = np.searchsorted(np.cumsum(counts[order]), np.array(SHARES) * counts.sum())
    found = (HeldOut(block, sample, samples.ctx, choice, int(order[i])) for i in np.unique(at))
    return [expert for expert in found if expert.enough]


def _left(planning: PlanningInput, expert: HeldOut, part: str, kind: str) -> float | None:
    kernels, tensors = planning.needed_kernels(), planning.checkpoint.tensors

    def rounded(name: str, values: F32) -> F32:
        vector = importance_vector(tensors[name], expert.expert, kind, planning.imatrix)
        columns = values.shape[1]
        data = kernels.quantize(
            np.ascontiguousarray(values, np.float32), kind, None if vector is None else vector[:columns]
        )
        return kernels.dequantize(data, kind, columns)

    return expert.left_of_down(rounded) if part == DOWN else expert.left_of_gate_and_up(rounded)
