"""`place`: what lies in which memory, and what that gives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from collab_plugin.api.arguments import AnyPath, Model, engine_of, opened, threads_of
from collab_plugin.api.trace_argument import trace_for
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.engines.ability import check_able
from collab_plugin.engines.engine import Engine
from collab_plugin.errors import CollabError
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.placement.disk_speed import disk_speeds
from collab_plugin.placement.expert_tensors import expert_tensors, read_matrices
from collab_plugin.placement.machine_profile import MachineProfile, forecast_error, read_profile, write_profile
from collab_plugin.placement.machines import read_bandwidth
from collab_plugin.placement.place import Placed, PlaceInput, with_honours
from collab_plugin.placement.place import place as place_checkpoint
from collab_plugin.placement.placement import PlacementSource, Tier, TierKind
from collab_plugin.placement.policy import LayerUse, PlacementPolicy
from collab_plugin.placement.policy_table import HitCurve, hit_curves
from collab_plugin.placement.run_setup import DEFAULT_SETUP, RunSetup
from collab_plugin.placement.tier_rooms import TierSpeed
from collab_plugin.planning.budget import parse_size
from collab_plugin.plugins.manager import registry
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.stats.match_model import match_model
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import LayerRouting
from collab_plugin.stats.stats_file import read_stats

_KINDS: Mapping[str, TierKind] = {
    "gpu": "gpu", "vram": "gpu", "cuda": "gpu", "unified": "unified", "ram": "host", "host": "host", "memory": "host",
    "cpu": "host", "disk": "disk", "ssd": "disk", "nvme": "disk",
}  # fmt: skip
_TIER = re.compile(r"^(?P<name>[a-z]+\d*)(=(?P<size>[^@]+))?(@(?P<speed>.+))?$")


def place(
    model: Model,
    *,
    tiers: Sequence[str | Tier],
    stats: AnyPath | None = None,
    trace: RoutingTrace | AnyPath | None = None,
    policy: str | None = None,
    parameters: Mapping[str, float] | None = None,
    setup: RunSetup = DEFAULT_SETUP,
    measure: bool = False,
    engine: str | Engine = "llamacpp",
    threads: int | None = None,
    progress: OnProgress = silent,
) -> Placed:
    """Place the experts of ``model`` into memories, and say what that gives.

    ``tiers`` from the fastest to the slowest: ``"gpu=24GB"``, ``"ram=96GB"``, ``"disk"``, each with a bandwidth where
    it is known (``"gpu=24GB@1008GB"`` is 1008 GB a second), or `Tier` objects. ``stats``: what `calibrate` wrote, of
    this model or of the one that it was pruned from; ``trace``: which experts tokens chose one after another, on which
    policies are then compared. ``policy``: the placement policy; None: the fastest one on the trace, or without a
    trace lfu-steady. ``measure``: time this machine's memory, disk and kernels with
    ``engine``; else what was measured before counts. ``parameters``: of ``policy``, by name. ``setup``: how the
    model is to run, whose KV cache takes room. `write_placement` keeps ``.placement`` in a file.

    Example: ``cp.place("out.gguf", tiers=["gpu=24GB", "ram=96GB", "disk"], stats="stats.gguf").placement``
    """
    checkpoint = opened(model)
    parsed = tuple(tier if isinstance(tier, Tier) else tier_of(tier) for tier in tiers)
    if not parsed:
        raise CollabError("`tiers` is empty: give the memories, such as gpu=24GB and ram=96GB")
    policies = _policies(policy, parameters or {})
    source, routing = _routing(stats, checkpoint)
    at = threads_of(threads)
    profile = _measured(checkpoint, engine_of(engine), at, progress) if measure else read_profile(at)
    known = [_known(tier, profile, checkpoint) for tier in parsed]
    given = PlaceInput(
        tuple(tier for tier, _ in known),
        tuple(speed for _, speed in known),
        setup,
        policies,
        policy,
        routing,
        source,
        None if trace is None else trace_for(trace, checkpoint),
        profile.node_seconds if profile else 0.0,
        forecast_error(),
    )
    placed = place_checkpoint(checkpoint, given)
    notes = (*placed.placement.notes, *_machine_notes(parsed, profile))
    placed = dataclasses.replace(placed, placement=dataclasses.replace(placed.placement, notes=notes))
    honours = {name: each.honours(placed.placement) for name, each in registry().engines.items()}
    return with_honours(placed, {name: said for name, said in honours.items() if said})


def hit_rates(
    model: Model, trace: RoutingTrace | AnyPath, *, stats: AnyPath | None = None, progress: OnProgress = silent
) -> list[HitCurve]:
    """Hit rate of every placement policy by the share of the experts that the first tier holds, on ``trace``.

    ``stats``: what policies that begin with known statistics are given.

    Example: ``cp.hit_rates("out.gguf", "trace.npz", stats="stats.gguf")[0].hits``
    """
    checkpoint = opened(model)
    found = trace_for(trace, checkpoint)
    _, routing = _routing(stats, checkpoint)
    uses = [LayerUse(layer, found.experts, None if routing is None else routing.get(layer)) for layer in found.layers]
    with track(progress, "replaying the trace"):
        return hit_curves(list(registry().placement_policies.values()), uses, found)


def tier_of(text: str) -> Tier:
    """``NAME[=SIZE][@BYTES A SECOND]`` as a tier; CollabError for what is none."""
    found = _TIER.match(text.strip())
    kind = _KINDS.get(re.sub(r"\d+$", "", found["name"])) if found else None
    if found is None or kind is None:
        names = ", ".join(_KINDS)
        raise CollabError(f"tier {text!r} is no memory: write NAME=SIZE such as gpu=24GB or ram=96GB; names: {names}")
    size = None if found["size"] is None else parse_size(found["size"], "tiers")
    if size is None and kind != "disk":
        raise CollabError(f"tier {text!r} has no size: write {text}=96GB")
    return Tier(found["name"], kind, size, None if found["speed"] is None else _bandwidth(found["speed"]))


def _policies(policy: str | None, parameters: Mapping[str, float]) -> Mapping[str, PlacementPolicy]:
    """All that are known, ``policy`` among them with its ``parameters``."""
    known = registry().placement_policies
    if not parameters:
        return known
    if policy is None:
        raise CollabError(f"parameters ({', '.join(parameters)}) are a policy's: name the placement policy too")
    return {**known, policy: known[policy].told(parameters)} if policy in known else known


def _bandwidth(text: str) -> float:
    return float(parse_size(re.sub(r"/s$", "", text), "tiers"))


def _routing(
    stats: AnyPath | None, checkpoint: Checkpoint
) -> tuple[PlacementSource | None, Mapping[int, LayerRouting] | None]:
    if stats is None:
        return None, None
    path = Path(stats)
    matched = match_model(read_stats(path), checkpoint, str(path)).stats
    return PlacementSource(path.name, file_sha256(path), matched.tokens), matched.routing


def _measured(checkpoint: Checkpoint, engine: Engine, threads: int, progress: OnProgress) -> MachineProfile:
    check_able(engine, "measure")
    sizes = [info.nbytes for info in checkpoint.tensors.values()]
    matrices = read_matrices(checkpoint, topology_of(checkpoint).experts_used)
    with track(progress, "measuring this machine"):
        memory = read_bandwidth(threads)
        disk = disk_speeds(_largest(checkpoint.path))
        devices, node_seconds = engine.measure(matrices, model_bytes=sum(sizes), threads=threads)
    profile = MachineProfile(engine.version(), threads, memory, disk, devices, node_seconds)
    write_profile(profile)
    return profile


def _largest(path: Path) -> Path:
    if not path.is_dir():
        return path
    return max((file for file in path.iterdir() if file.is_file()), key=lambda file: file.stat().st_size)


def _known(tier: Tier, profile: MachineProfile | None, checkpoint: Checkpoint) -> tuple[Tier, TierSpeed]:
    """The tier with its bandwidth, and all that is known of its speed. What was given counts before what was
    measured."""
    kernels: Mapping[str, float] = {}
    measured = None
    if profile is not None and tier.kind == "disk":
        sizes = [tensor.bytes / tensor.experts for tensor in expert_tensors(checkpoint, 1)]
        measured = profile.disk_speed(sum(sizes) / len(sizes)) if sizes else None
    elif profile is not None:
        device = next((d for d in profile.devices if (d.kind == "host") == (tier.kind == "host")), None)
        kernels = device.kernels if device is not None and tier.bandwidth is None else {}
        measured = profile.memory if tier.kind == "host" else max(kernels.values(), default=None)
    bandwidth = measured if tier.bandwidth is None else tier.bandwidth
    named = dataclasses.replace(tier, bandwidth=bandwidth, measured=tier.bandwidth is None and measured is not None)
    return named, TierSpeed(bandwidth, kernels, bandwidth)


def _machine_notes(tiers: Sequence[Tier], profile: MachineProfile | None) -> list[str]:
    if profile is None:
        return []
    gpus = [device for device in profile.devices if device.kind == "gpu"]
    notes = []
    if not gpus and any(tier.kind == "gpu" for tier in tiers):
        notes.append("no GPU was found on this machine: the tier's speed is what was given, and engines here ignore it")
    if any(device.unified for device in gpus) and any(tier.kind == "gpu" for tier in tiers):
        notes.append("this machine's GPU uses the processor's memory: placing experts on either moves no byte")
    return notes
