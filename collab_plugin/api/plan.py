"""`plan`: what is kept, and the type of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from collab_plugin.api.arguments import AnyPath, Model, engine_of, opened, paths, scratch_of, source_of, threads_of
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.checkpoint.trained_context import window_note
from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.engines.supported_types import allowed_types, refuse_types
from collab_plugin.formats.ggml_types import type_info
from collab_plugin.planning.allocators.allocator import Allocator
from collab_plugin.planning.budget import parse_budget
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.decide import Measuring, decide
from collab_plugin.planning.prediction import prunable
from collab_plugin.planning.pruning import Layers, Order
from collab_plugin.planning.request import DEFAULT_TYPES, PlanRequest
from collab_plugin.plans.plan import GroupPolicy, Plan
from collab_plugin.plugins.manager import first_kernels, pick, registry
from collab_plugin.progress import OnProgress, silent
from collab_plugin.stats.stats import Stats


def plan(
    model: Model,
    *,
    stats: Stats | AnyPath | None = None,
    budget: str | int | None = None,
    keep: str | float = "auto",
    layers: Layers = "same",
    experts_used: int | Literal["auto"] | None = None,
    criterion: str | ImportanceCriterion = "freq-score",
    alpha: float = 0.5,
    seed: int = 0,
    groups: GroupPolicy | None = None,
    borrow: float = 32.0,
    base: str | None = None,
    floors: Mapping[str, str] | None = None,
    ceilings: Mapping[str, str] | None = None,
    types: str | Sequence[str] = (),
    loader: str | None = None,
    allocator: str | Allocator = "knapsack",
    order: Order = "original",
    keep_types: bool = False,
    allow_few_tokens: bool = False,
    probe_minutes: float | None = None,
    confirm: int = 0,
    texts: AnyPath | Sequence[AnyPath] = (),
    chunks: int = 8,
    engine: str | Engine = "llamacpp",
    scratch: AnyPath | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Plan:
    """Decide which experts stay, how many a token uses, and the type of every tensor, within ``budget`` bytes.

    ``stats``: of `calibrate`, or any imatrix GGUF. ``budget``: bytes, or "103GB", "98.5GiB", "2.5bpw"; never
    exceeded. ``keep``: experts a layer, "auto", a share (0.75, "75%") or a count (an int). ``layers`` "varied": each
    layer its own number with that mean, which only vLLM runs. ``experts_used``: by default scaled with the kept
    share; "auto": that or the original number. ``criterion`` ranks experts and ``allocator`` gives out bits: names,
    or objects. ``groups``, of routers that have them: "balanced" (default) or "disband". ``borrow``: tokens of the
    layer's mean importance mixed into each expert's. ``base``, ``floors``, ``ceilings``: smallest and largest ggml
    types, of experts and by role. ``types``: only these; ``loader``: only those that this program loads.
    ``keep_types``: prune alone, without a budget. ``confirm``: so many of the best candidates are built in
    ``scratch`` (a folder with room for the model; by default the user's cache) and measured on ``texts``, at most
    ``chunks`` windows of 512 tokens of each; the winner is returned. ``probe_minutes``: measure sensitivity first.

    Raises CollabError when no plan within the rules holds the budget, naming the smallest that would.

    Example: ``cp.plan("DeepSeek-V3/", stats="stats.gguf", budget="103GB", experts_used="auto")``
    """
    source = None if stats is None else source_of(stats)
    checkpoint = prunable(opened(model), source.stats if source else None, str(keep), groups, keep_types)
    topology = topology_of(checkpoint)
    request = PlanRequest(
        budget=None if budget is None else parse_budget(str(budget), topology.total_parameters),
        criterion=pick(registry().criteria, criterion, "criterion") if isinstance(criterion, str) else criterion,
        allocator=pick(registry().allocators, allocator, "allocator") if isinstance(allocator, str) else allocator,
        keep=str(keep),
        layers=layers,
        experts_used=experts_used,
        alpha=alpha,
        seed=seed,
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
    measuring = None
    if probe_minutes is not None or confirm:
        measuring = Measuring(
            engine=engine_of(engine),
            windows=Windows(paths(texts), chunks=chunks),
            folder=scratch_of(scratch),
            probe_seconds=None if probe_minutes is None else probe_minutes * 60,
            confirm=confirm,
        )
    made = decide(checkpoint, topology, source, request, None if keep_types else first_kernels(), measuring, progress)
    if measuring is not None and (note := window_note(checkpoint, measuring.windows.ctx)):
        made = replace(made, notes=(*made.notes, note))
    if loader is not None:
        _refuse_types(made, loader)
    return made


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
