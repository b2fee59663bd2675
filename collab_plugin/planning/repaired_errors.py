"""What repair with samples leaves of each type's error in the experts of this model, measured before types are chosen.

Types gain unlike: where a kernel takes little care (Q2_K, Q3_K) feedback takes away most, so with samples other types
are the best of their size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import mean

import numpy as np

from collab_plugin.formats.user_folders import cache_path
from collab_plugin.planning.measure.groups import part_of
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.sources import SamplesSource
from collab_plugin.planning.type_choices import type_choices
from collab_plugin.planning.type_limits import Limits
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.quantize.known_errors import KnownErrors, error_key
from collab_plugin.repair.held_out import F32, HeldOut
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.stats.importance_matrix import importance_vector

QUARTERS = (0.25, 0.75)
"""What is looked at: of the layers that were sampled those a quarter and three quarters down, and of each the experts
that stand at these shares of all selections, those of the busiest first."""
DOWN = "expert down"
LEAST = 1e-6
NOT_ROUNDED = ("F32", "F16", "BF16")
ANY = "Q8_0"  # importance vectors do not depend on the type
METHOD = "repaired 2"
"""In the keys of what is remembered: another number where another way of repair leaves something else."""
_Job = tuple[HeldOut, str, str]


@dataclass(frozen=True)
class RepairedErrors:
    """``shares``: what repair leaves of a type's error, over what random errors as large do, by part of the model and
    type, in the layers that were looked at. ``tensors``: part and layer of those that it holds for. ``experts``: how
    many it was measured on."""

    shares: Mapping[tuple[str, str], Mapping[int, float]]
    tensors: Mapping[str, tuple[str, int]]
    experts: int

    def left(self, name: str, kind: str) -> float:
        """The share of the tensor's error at the type ``kind``, between layers that were looked at linear in depth; 1
        where nothing is repaired.

        It grows with depth: of the errors of routed experts 0.07 to 0.09 is left in the first three layers of
        deep-qwen3moe at 3.5 bits, 0.22 to 0.32 in the last five.
        """
        part, layer = self.tensors.get(name, ("", 0))
        if (seen := self.shares.get((part, kind))) is None:
            return 1.0
        layers = sorted(seen)
        return float(np.interp(layer, layers, [seen[at] for at in layers]))

    @property
    def source(self) -> str:
        """One line for the plan; "" where nothing is repaired."""
        if not self.shares:
            return ""
        shares = [share for seen in self.shares.values() for share in seen.values()]
        low, high = min(shares), max(shares)
        found = f"repair leaves {low:.2f} to {high:.2f} of experts' errors"
        return f"{found}, by type and layer, measured on {self.experts} experts"


NONE = RepairedErrors({}, {}, 0)


def repaired_errors(planning: PlanningInput, progress: OnProgress = silent) -> RepairedErrors:
    """Measured on the planning's samples; `NONE` without, or where nothing is quantized.

    Each type that experts may get is tried on at most 4 experts, two of a layer, whose mean counts, and of each on 512
    hidden values at most. The same whatever the number of threads; what an earlier plan measured is not again.
    """
    source = planning.samples_source
    if source is None or planning.request.keep_types:
        return NONE
    layers = [layer for layer in planning.topology.moe_layers if layer in source.samples.layers]
    if not layers:
        return NONE
    tensors = _repaired_tensors(planning, layers)
    tried = _tried(planning, tensors)
    with one_blas_thread():
        experts = {e: layer for layer in _looked_at(layers) for e in _experts(planning, source, layer)}
        found = _measured(planning, [(expert, *pair) for pair in tried for expert in experts], progress)
    return RepairedErrors(_by_layer(found, experts), tensors, len(experts))


def _by_layer(found: Mapping[_Job, float], layers: Mapping[HeldOut, int]) -> dict[tuple[str, str], dict[int, float]]:
    """Means over the experts of a layer, by part and type. Errors of experts add up, so the mean is arithmetic."""
    seen: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (expert, part, kind), left in found.items():
        seen.setdefault((part, kind), {}).setdefault(layers[expert], []).append(left)
    return {pair: {layer: mean(each) for layer, each in by_layer.items()} for pair, by_layer in seen.items()}


def _repaired_tensors(planning: PlanningInput, layers: Sequence[int]) -> dict[str, tuple[str, int]]:
    """Experts' matrices of sampled layers, with the part and the layer that each is of."""
    return {
        name: (part_of(info), info.layer)
        for name, info in planning.checkpoint.tensors.items()
        if info.by_expert and len(info.shape) == 3 and info.layer is not None and info.layer in layers
    }


def _tried(planning: PlanningInput, tensors: Mapping[str, tuple[str, int]]) -> list[tuple[str, str]]:
    """(part, type) that may be rounded."""
    request, stored = planning.request, planning.checkpoint.tensors
    choices = type_choices(planning, Limits.of(request.base, request.floors, request.ceilings))
    return sorted(
        {
            (part, kind)
            for name, (part, _) in tensors.items()
            for kind in choices.get(name, ())
            if kind not in NOT_ROUNDED and kind != stored[name].type.name
        }
    )


def _measured(planning: PlanningInput, jobs: Sequence[_Job], progress: OnProgress) -> dict[_Job, float]:
    """What is left by part and type, of each expert that can tell."""
    remembered = KnownErrors(cache_path() / "errors.sqlite")
    experts = {expert: _digest(planning, expert) for expert, _, _ in jobs}
    keys = {job: hashlib.sha256(experts[job[0]] + f" {job[1]} {job[2]}".encode()).digest() for job in jobs}
    known = remembered.find(list(keys.values()))
    todo = [job for job in jobs if keys[job] not in known]
    with (
        track(progress, "measuring what repair leaves", unit="errors") as report,
        ThreadPoolExecutor(planning.request.threads) as pool,
    ):
        for done, (job, left) in enumerate(zip(todo, pool.map(lambda j: _left(planning, *j), todo), strict=True), 1):
            if left is not None:
                known[keys[job]] = max(left, LEAST)
            report(done, len(todo))
    remembered.keep({keys[job]: known[keys[job]] for job in todo if keys[job] in known})
    return {job: known[keys[job]] for job in jobs if keys[job] in known}


def _digest(planning: PlanningInput, expert: HeldOut) -> bytes:
    """All that its shares depend on, but part and type."""
    tokens = np.concatenate([expert.inputs, expert.weights, expert.held[:, None].astype(np.float32)], 1)
    matrices = ((values, _vector(planning, expert, name, ANY)) for name, values in expert.matrices.items())
    return error_key(planning.needed_kernels().version(), METHOD, ((tokens, None), *matrices))


def _looked_at(sampled: Sequence[int]) -> list[int]:
    return [sampled[i] for i in np.unique(np.rint(np.array(QUARTERS) * (len(sampled) - 1)).astype(int))]


def _experts(planning: PlanningInput, source: SamplesSource, layer: int) -> list[HeldOut]:
    """Those at `QUARTERS` of the layer's selections that got enough tokens. CollabError for samples that do not fit."""
    t, samples = planning.topology, source.samples
    sample = samples.layers[layer]
    sample.check(samples.path)
    block = RoutedBlock(planning.checkpoint, t, layer)
    block.check(sample)
    choice = block.choose(np.asarray(sample.inputs), tuple(range(t.expert_count)), t.experts_used, grouped=t.groups > 1)
    counts = np.bincount(choice.ids.reshape(-1), minlength=t.expert_count)
    order = np.argsort(-counts, kind="stable")
    at = np.searchsorted(np.cumsum(counts[order]), np.array(QUARTERS) * counts.sum())
    found = (HeldOut(block, sample, samples.ctx, choice, int(order[i])) for i in np.unique(at))
    return [expert for expert in found if expert.enough]


def _left(planning: PlanningInput, expert: HeldOut, part: str, kind: str) -> float | None:
    kernels = planning.needed_kernels()

    def rounded(name: str, values: F32) -> F32:
        vector = _vector(planning, expert, name, kind)
        data = kernels.quantize(np.ascontiguousarray(values, np.float32), kind, vector)
        return kernels.dequantize(data, kind, values.shape[1])

    importance = partial(_vector, planning, expert, kind=kind)
    measured = expert.left_of_down if part == DOWN else expert.left_of_gate_and_up
    return measured(rounded, importance)


def _vector(planning: PlanningInput, expert: HeldOut, name: str, kind: str) -> F32 | None:
    """Importance of the columns that are looked at."""
    vector = importance_vector(planning.checkpoint.tensors[name], expert.expert, kind, planning.imatrix)
    return None if vector is None else vector[: expert.matrices[name].shape[1]]
