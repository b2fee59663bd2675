"""The verbs of the Python interface: what the command line calls, one function a command.

Everywhere ``model`` is the path of a GGUF file or Hugging Face folder, or a `Checkpoint` that `open_checkpoint` gave;
a plan or stats are the object or the path of its file. ``threads`` None: all cores; no result depends on it.
``progress`` gets events (`print` will do). A mistake raises CollabError: one line that names the parameter in
backticks. Units: bytes, tokens, nats. Page: docs/python.md.

Each function imports what it needs: inspecting a model does not load the solver of plans.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from collab_plugin.errors import CollabError
from collab_plugin.progress import OnProgress, silent, track

if TYPE_CHECKING:
    from collab_plugin.checkpoint.checkpoint import Checkpoint
    from collab_plugin.checkpoint.topology import Topology
    from collab_plugin.compression.gguf_file import Compressed
    from collab_plugin.compression.hf_folder import CompressedFolder, FolderPrecision
    from collab_plugin.engines.engine import Engine
    from collab_plugin.engines.results import Evaluation
    from collab_plugin.planning.allocators.allocator import Allocator
    from collab_plugin.planning.criteria.criterion import ImportanceCriterion
    from collab_plugin.planning.pruning import Layers, Order
    from collab_plugin.planning.request import StatsSource
    from collab_plugin.plans.plan import GroupPolicy, Plan
    from collab_plugin.reports.gather import Facts
    from collab_plugin.stats.stats import Stats

    AnyPath = str | os.PathLike[str]
    Model = AnyPath | Checkpoint


def inspect(model: Model) -> Topology:
    """Return the layers, experts, router, and the parameters and bytes of each role.

    Example: ``cp.inspect("DeepSeek-V3/").expert_count``
    """
    from collab_plugin.checkpoint.topology import topology_of

    return topology_of(_opened(model))


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
    from collab_plugin.checkpoint.topology import topology_of
    from collab_plugin.engines.engine import Windows
    from collab_plugin.planning.budget import parse_budget
    from collab_plugin.planning.decide import Measuring, decide
    from collab_plugin.planning.request import PlanRequest
    from collab_plugin.plugins.manager import first_kernels, pick, registry

    checkpoint = _opened(model)
    topology = topology_of(checkpoint)
    source = None if stats is None else _source(stats)
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
        threads=threads or cores(),
    )
    measuring = None
    if probe_minutes is not None or confirm:
        measuring = Measuring(
            engine=_engine(engine),
            windows=Windows(_paths(texts), chunks=chunks),
            folder=_scratch(scratch),
            probe_seconds=None if probe_minutes is None else probe_minutes * 60,
            confirm=confirm,
        )
    made = decide(checkpoint, topology, source, request, None if keep_types else first_kernels(), measuring, progress)
    if loader is not None:
        _refuse_types(made, loader)
    return made


@overload
def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    format: Literal["gguf"] = "gguf",
    precision: None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Compressed: ...


@overload
def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: None = None,
    format: Literal["safetensors"],
    precision: FolderPrecision | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> CompressedFolder: ...


@overload
def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    format: str,
    precision: FolderPrecision | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Compressed | CompressedFolder: ...


def compress(
    model: Model,
    plan: Plan | AnyPath,
    out: AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    format: str = "gguf",
    precision: FolderPrecision | None = None,
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Compressed | CompressedFolder:
    """Write what ``plan`` describes to ``out``: the GGUF, or with ``format`` "safetensors" a Hugging Face folder.

    ``stats``: those that the plan was made with; where not given, the file of that name beside the plan's file.
    ``precision`` of a folder: "plan" (8 and 4 bits as compressed-tensors where the plan has few) or "original".
    The output appears under its name only when complete; an interrupted GGUF goes on when called again.

    Example: ``cp.compress("DeepSeek-V3/", "plan.json", "out.gguf", progress=print).bytes``
    """
    from collab_plugin.plans.artifact import check_one_count

    decided, folder = _plan(plan)
    if format == "safetensors":
        if stats is not None:
            raise CollabError("`stats` is for GGUF files: 8 and 4 bits of compressed-tensors need none; leave it out")
        from collab_plugin.compression.hf_folder import compress_folder

        check_one_count(decided, "a config.json")
        checkpoint = _opened(model)
        with track(progress, "compressing", unit="weights") as advance:
            return compress_folder(
                checkpoint,
                decided,
                Path(out),
                precision=precision or "plan",
                threads=threads or cores(),
                report=advance,
            )
    if format != "gguf":
        raise CollabError(f"`format` {format!r} is neither gguf nor safetensors")
    if precision is not None:
        raise CollabError("`precision` is for `format` safetensors: a GGUF has the plan's types; leave it out")
    from collab_plugin.compression.gguf_file import compress as compress_gguf
    from collab_plugin.compression.inputs import quantizes, stats_of
    from collab_plugin.plugins.manager import first_kernels

    check_one_count(decided, "a GGUF")  # before stats and kernels are missed
    checkpoint = _opened(model)
    used = stats_of(decided, checkpoint, folder, _object_or_path(stats))
    kernels = first_kernels() if quantizes(decided, checkpoint) else None
    with track(progress, "compressing", unit="weights") as advance:
        return compress_gguf(
            checkpoint, decided, used, Path(out), kernels=kernels, threads=threads or cores(), report=advance
        )


def report(
    plan: Plan | AnyPath,
    *,
    stats: Stats | AnyPath | None = None,
    model: Model | None = None,
    evaluations: Sequence[Evaluation | AnyPath] = (),
    rivals: AnyPath | None = None,
    ctx: int = 8192,
    reserve: str | int = "1GiB",
) -> Facts:
    """Gather what a plan decided and how good it is; `write_report` makes a page and plots of it.

    ``stats``: those that the plan used; where not given, the file of that name beside the plan's file.
    ``model``: for what its metadata says. ``evaluations``: of the plan's file, by `evaluate`, or files of
    ``evaluate --json``. ``rivals``: CSV of other files to compare with (rival, bytes, mean_kld). ``ctx``: tokens, for
    the KV cache. ``reserve``: bytes of memory to leave free. What is not given is named in ``left_out``.

    Example: ``cp.write_report(cp.report("plan.json", model="DeepSeek-V3/"), "report.html")``
    """
    from collab_plugin.planning.budget import parse_budget
    from collab_plugin.plugins.manager import registry
    from collab_plugin.reports.gather import Extras, gather, stats_beside
    from collab_plugin.reports.measured import measured, read_evaluation, read_rivals

    decided, folder = _plan(plan)
    if stats is None and folder is not None:
        stats = stats_beside(decided, folder)
    source = None if stats is None else _source(stats)
    known = decided.calibration.sha256 if decided.calibration else None
    extras = Extras(
        stats=source.stats if source else None,
        stats_same=source is None or source.sha256 == known,
        model=None if model is None else _opened(model),
        evaluations=tuple(
            read_evaluation(Path(e)) if isinstance(e, (str, os.PathLike)) else measured(e) for e in evaluations
        ),
        rivals=() if rivals is None else read_rivals(Path(rivals), decided.source.name),
        context=ctx,
        reserve=0 if str(reserve) == "0" else parse_budget(str(reserve), decided.source.parameters),
    )
    return gather(decided, extras, registry().criteria)


def cores() -> int:
    """Cores that this process may run on: fewer than the machine's in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- arguments in all their forms


def _opened(model: Model) -> Checkpoint:
    from collab_plugin.plugins.open_checkpoint import open_checkpoint

    return open_checkpoint(model) if isinstance(model, (str, os.PathLike)) else model


def _plan(plan: Plan | AnyPath) -> tuple[Plan, Path | None]:
    """The plan and the folder of its file, where its stats may lie."""
    from collab_plugin.plans.plan_file import read_plan

    if not isinstance(plan, (str, os.PathLike)):
        return plan, None
    return read_plan(Path(plan)), Path(plan).parent


def _source(stats: Stats | AnyPath) -> StatsSource:
    from collab_plugin.planning.request import StatsSource

    return StatsSource.read(Path(stats)) if isinstance(stats, (str, os.PathLike)) else StatsSource.of(stats)


def _object_or_path(stats: Stats | AnyPath | None) -> Stats | Path | None:
    return Path(stats) if isinstance(stats, (str, os.PathLike)) else stats


def _paths(texts: AnyPath | Sequence[AnyPath]) -> tuple[Path, ...]:
    return (Path(texts),) if isinstance(texts, (str, os.PathLike)) else tuple(map(Path, texts))


def _engine(engine: str | Engine) -> Engine:
    from collab_plugin.plugins.manager import pick, registry

    return pick(registry().engines, engine, "engine") if isinstance(engine, str) else engine


def _scratch(folder: AnyPath | None) -> Path:
    from collab_plugin.compression.as_gguf import cache_folder

    if folder is None:
        return cache_folder()
    if not Path(folder).is_dir():
        raise CollabError(f"`scratch` {folder} is no folder; make it first")
    return Path(folder)


def _types(given: str | Sequence[str], loader: str | None) -> tuple[str, ...]:
    """The types asked for that the program ``loader`` loads; () for all."""
    from collab_plugin.engines.supported_types import allowed_types
    from collab_plugin.formats.ggml_types import type_info
    from collab_plugin.planning.request import DEFAULT_TYPES
    from collab_plugin.plugins.manager import pick, registry

    names = given.split(",") if isinstance(given, str) else given
    types = tuple(type_info(name.strip()).name for name in names)
    if loader is None:
        return types
    allowed = allowed_types(pick(registry().loaders, loader, "program"), types or DEFAULT_TYPES, bool(types))
    return () if allowed == DEFAULT_TYPES else allowed


def _refuse_types(plan: Plan, loader: str) -> None:
    """CollabError when a tensor that is only copied has a type that the program does not load."""
    from collab_plugin.engines.supported_types import refuse_types
    from collab_plugin.plugins.manager import pick, registry

    types = {name: tensor.type for name, tensor in plan.tensors.items()}
    refuse_types(pick(registry().loaders, loader, "program"), types, "the plan")
