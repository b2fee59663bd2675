"""`plan`: what is kept, and the type of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from collab_plugin.api.arguments import (
    AnyPath,
    Model,
    allocator_of,
    criterion_of,
    measuring_of,
    opened,
    sensitivity_of,
    source_of,
    threads_of,
)
from collab_plugin.api.fit import machine_of
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import Topology, topology_of
from collab_plugin.checkpoint.trained_context import window_note
from collab_plugin.compression.inputs import samples_at
from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.compression.ray_connection import address_elsewhere
from collab_plugin.engines.engine import Engine
from collab_plugin.engines.supported_types import allowed_types, refuse_types
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import type_info
from collab_plugin.placement.artifact_shape import shape_of_checkpoint
from collab_plugin.placement.machine_fit import budget_for
from collab_plugin.placement.machines import Machine
from collab_plugin.placement.run_setup import DEFAULT_SETUP, KvType, RunSetup
from collab_plugin.planning.allocators.allocator import Allocator
from collab_plugin.planning.budget import parse_budget, parse_size
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.decide import decide
from collab_plugin.planning.kv_choice import with_best_cache
from collab_plugin.planning.options import OptionValue
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.prediction import prunable
from collab_plugin.planning.request import DEFAULT_TYPES, PlanRequest
from collab_plugin.planning.sources import SamplesSource
from collab_plugin.plans.plan import GroupPolicy, Layers, Order, Plan
from collab_plugin.plugins.manager import first_kernels, pick, registry
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import OnProgress, silent
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.stats import Stats


def plan(
    model: Model,
    *,
    stats: Stats | AnyPath | None = None,
    sensitivity: Sensitivity | AnyPath | None = None,
    samples: AnyPath | None = None,
    budget: str | int | None = None,
    memory: str | int | None = None,
    machine: str | Machine | None = None,
    setup: RunSetup = DEFAULT_SETUP,
    kv_types: Sequence[KvType] = (),
    keep: str | float = "auto",
    layers: Layers = "same",
    experts_used: int | Literal["auto"] | None = None,
    criterion: str | ImportanceCriterion = "auto",
    criterion_options: Mapping[str, OptionValue] | None = None,
    groups: GroupPolicy | None = None,
    borrow: float = 32.0,
    base: str | None = None,
    floors: Mapping[str, str] | None = None,
    ceilings: Mapping[str, str] | None = None,
    types: str | Sequence[str] = (),
    loader: str | None = None,
    allocator: str | Allocator = "knapsack",
    allocator_options: Mapping[str, OptionValue] | None = None,
    order: Order = "original",
    keep_types: bool = False,
    allow_few_tokens: bool = False,
    confirm: int = 0,
    texts: AnyPath | Sequence[AnyPath] = (),
    ctx: int | None = None,
    chunks: int = 8,
    engine: str | Engine = "llamacpp",
    cluster: str | None = None,
    kernels: Kernels | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Plan:
    """Decide which experts stay, how many a token uses, and the type of every tensor, within ``budget`` bytes.

    ``stats``: of `calibrate`, or any imatrix GGUF. ``sensitivity``: of `probe`; without it the prediction rests on
    what was learnt on small models. ``budget``: bytes, or "103GB", "98.5GiB", "2.5bpw"; never exceeded. In its place
    ``memory`` ("128GB") or a known ``machine`` ("strix-halo-128"): the file gets what is left when the model runs as
    ``setup`` says; with ``kv_types`` ("f16", "q8_0", "q4_0") that type of the KV cache is taken which leaves the best
    plan, what the cache itself costs counted. ``keep``: experts a layer, "auto", a share (0.75, "75%") or a count (an
    int). ``layers`` "varied": each layer its own number with that mean, which only vLLM runs. ``experts_used``: by
    default scaled with the kept
    share; "auto": that or the original number. ``allow_few_tokens``: prune although calibration saw too few.

    ``samples``: what `sample` wrote of this model: the kept experts' `down` matrices are then fitted to it, to do the
    work of the dropped ones too.

    ``criterion`` ranks experts and ``allocator`` gives out bits: names or objects, each with options of its own in
    ``criterion_options`` ({"alpha": 0.2}) and ``allocator_options``. ``groups``, of routers that have them: "balanced"
    (default) or "disband". ``order`` of the experts in the file: "original" or "importance". ``borrow``: tokens of the
    layer's mean importance mixed into each expert's. ``base``, ``floors``, ``ceilings``: smallest and largest ggml
    types, of experts and by role. ``types``: only these; ``loader``: only those that this program loads.
    ``keep_types``: prune alone, without a budget.

    ``confirm``: so many of the best candidates are built in the user's cache folder and measured on ``texts``, at
    most ``chunks`` windows of ``ctx`` tokens (default: as the stats were calibrated) of each; the winner is returned.
    ``cluster``: address of a Ray cluster whose workers build and measure them, ``threads`` cores a worker, with the
    same numbers; the model, texts, samples and the cache folder lie on storage that all of them see. ``kernels``
    measure what quantizing costs; by default the first that a plugin brings.

    Raises CollabError when no plan within the rules holds the budget, naming the smallest that would.

    Example: ``cp.plan("DeepSeek-V3/", stats="stats.gguf", budget="103GB", experts_used="auto")``
    """
    if cluster is not None and not confirm:
        raise CollabError("`cluster` measures candidates: give `confirm` too, or leave it out")
    if cluster is not None and kernels is not None:
        raise CollabError(
            "`kernels` are objects of this process: workers of a `cluster` take their own; leave them out"
        )
    source = None if stats is None else source_of(stats)
    checkpoint = prunable(opened(model), source.stats if source else None, str(keep), groups, keep_types)
    topology = topology_of(checkpoint)
    if kv_types and (confirm or keep_types or (memory is None and machine is None)):
        raise CollabError("`kv_types` are weighed with `memory` or `machine`, and without `confirm` and `keep_types`")
    size: int | None = None
    room_note = ""
    if not kv_types:
        size, room_note = _budget(checkpoint, topology, budget, (memory, machine, setup), threads)
    request = PlanRequest(
        budget=size,
        criterion=criterion_of(criterion),
        criterion_options=criterion_options or {},
        allocator=allocator_of(allocator),
        allocator_options=allocator_options or {},
        keep=str(keep),
        layers=layers,
        experts_used=experts_used,
        groups=groups,
        borrow=borrow,
        base=base,
        floors=floors or {},
        ceilings=ceilings or {},
        types=_types(types, loader),
        order=order,
        keep_types=keep_types,
        allow_few_tokens=allow_few_tokens,
        threads=threads_of(threads),
    )
    planning = PlanningInput(
        checkpoint,
        topology,
        request,
        source,
        None if sensitivity is None else sensitivity_of(sensitivity),
        None if keep_types else kernels or first_kernels(),
        None if samples is None else SamplesSource.read(Path(samples)),
    )
    measuring = measuring_of(engine, texts, ctx, chunks, planning.stats) if confirm else None
    if measuring is not None and cluster is not None:
        given = None if samples is None else Path(samples).resolve()
        measuring = replace(measuring, workers=_workers(cluster, checkpoint, given))

    def beside(kind: KvType) -> Plan:
        room = replace(setup, kv_type=kind)
        size, note = _budget(checkpoint, topology, budget, (memory, machine, room), threads)
        found = decide(replace(planning, request=replace(request, budget=size)), progress=progress)
        return replace(found, notes=(*found.notes, note))

    if kv_types:
        made, room_note = with_best_cache(kv_types, beside), ""
    else:
        made = decide(planning, confirm=confirm, measuring=measuring, progress=progress)
    if measuring is not None and (note := window_note(checkpoint, measuring.windows.ctx)):
        made = replace(made, notes=(*made.notes, note))
    if room_note:
        made = replace(made, notes=(*made.notes, room_note))
    if loader is not None:
        _refuse_types(made, loader)
    return made


def _workers(address: str, checkpoint: Checkpoint, samples: Path | None) -> RayCluster:
    return RayCluster(
        address,
        partial(open_checkpoint, address_elsewhere(checkpoint)),
        first_kernels,
        partial(samples_at, samples),
    )


def _budget(
    checkpoint: Checkpoint,
    topology: Topology,
    budget: str | int | None,
    room: tuple[str | int | None, str | Machine | None, RunSetup],
    threads: int | None,
) -> tuple[int | None, str]:
    """Bytes that the file may take, and a note where they follow from a machine."""
    memory, machine, setup = room
    if memory is None and machine is None:
        return None if budget is None else parse_budget(str(budget), topology.total_parameters), ""
    if budget is not None:
        raise CollabError("`budget` and `memory` or `machine` say the same thing twice: give one")
    if memory is not None and machine is not None:
        raise CollabError("`memory` and `machine` say the same thing twice: give one")
    total = parse_size(str(memory), "memory") if memory is not None else machine_of(machine, None, threads).available
    left = budget_for(shape_of_checkpoint(checkpoint), total, setup)
    return left, (
        f"the budget is what {total:,} bytes of memory leave beside {setup.sequences} x {setup.context:,} tokens of "
        f"{setup.kv_type} KV cache, the compute buffer and {setup.reserve:,} bytes of reserve"
    )


def _types(given: str | Sequence[str], loader: str | None) -> tuple[str, ...]:
    """The types asked for that the program ``loader`` loads; () for all."""
    names = given.split(",") if isinstance(given, str) else given
    types = tuple(type_info(name.strip()).name for name in names)
    if loader is None:
        return types
    allowed = allowed_types(pick(registry().loaders, loader, "program"), types or DEFAULT_TYPES, bool(types))
    return () if allowed == DEFAULT_TYPES else allowed


def _refuse_types(plan: Plan, loader: str) -> None:
    """CollabError when a tensor that is only copied has a type that the program does not load."""
    types = {name: tensor.type for name, tensor in plan.tensors.items()}
    refuse_types(pick(registry().loaders, loader, "program"), types, "the plan")
