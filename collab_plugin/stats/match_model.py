"""Statistics brought onto the model at hand: whose importance each tensor has, and what to say of it.

Three things may differ between the model that statistics were measured on and this one: gate and up may be one tensor
here and two there, experts may have been pruned since, and some tensors may have no data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.kept_experts import SOURCE_EXPERTS, SOURCE_MODEL_ID, kept_experts
from collab_plugin.errors import CollabError
from collab_plugin.formats.name_list import few
from collab_plugin.formats.tensor_names import Role
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting, Stats

_SAME_INPUT = (("ffn_gate_up", "ffn_gate", "ffn_up"), ("attn_qkv", "attn_q", "attn_k", "attn_v"))
"""Tensors that multiply the same activations; the first of each is the others in one, as some converters write it."""
_PART = re.compile(r"^(blk\.\d+\.)(ffn_gate_up|ffn_gate|ffn_up|attn_qkv|attn_q|attn_k|attn_v)(_exps|_shexp)?\.weight$")


@dataclass(frozen=True)
class Matched:
    """``stats`` with an entry by tensor of the model, all of its sizes; ``notes``: what was done, a sentence each."""

    stats: Stats
    notes: tuple[str, ...]


def match_model(stats: Stats, checkpoint: Checkpoint, label: str) -> Matched:
    """Return ``stats`` as they count for ``checkpoint``; what they already match is left as it is.

    ``label`` names the stats in messages. Raises CollabError when they are of another model: other routers, fewer
    than half of their tensors, other sizes.
    """
    where = f"{label} does not fit {checkpoint.address}"
    kept = _kept_since(stats, checkpoint, label)
    names = _names(stats, checkpoint)
    if len(set(names.values())) < len(stats.imatrix) / 2:
        raise CollabError(f"{label} names other tensors than {checkpoint.address}: it is of another model")
    imatrix: dict[str, ImatrixEntry] = {}
    wiped: dict[str, int] = {}
    pruned = kept.always
    for name, source in names.items():
        info = checkpoint.tensors[name]
        entry, cut = _sized(stats.imatrix[source], info, kept, f"{where}: {source}")
        entry, empty = _without_wiped(entry, info)
        if empty:
            wiped[name] = empty
        if entry.count.any():
            imatrix[name] = entry
        pruned |= cut
    routing = {n: _routing_of(r, n, checkpoint, kept, label) for n, r in stats.routing.items()}
    notes = (
        *_shared_note(names),
        *_left_out_note(stats, names),
        *_wiped_note(wiped),
        *_pruned_note(pruned),
        *_order_note(kept),
    )
    own = model_id(checkpoint) if kept.always else stats.model_id
    rounding = {name: stats.rounding[source] for name, source in names.items() if source in stats.rounding}
    return Matched(replace(stats, imatrix=imatrix, routing=routing, model_id=own, rounding=rounding), notes)


def without_data(checkpoint: Checkpoint, stats: Stats) -> tuple[str, ...]:
    """Names of the matrices that ``stats`` have no importance for, the embedding and the output matrix left out.

    An embedding is looked up, so nothing meets its columns; the output matrix is not measured by `calibrate`, nor by
    llama-imatrix unless it is told to (--process-output).
    """
    return tuple(
        name
        for name, info in checkpoint.tensors.items()
        if quantizable(info) and info.role not in (Role.EMBEDDING, Role.OUTPUT) and name not in stats.imatrix
    )


# -- names


def _names(stats: Stats, checkpoint: Checkpoint) -> dict[str, str]:
    """By tensor of the model: the entry of ``stats`` that is its own, or that of a tensor with the same input."""
    found = {}
    for name in checkpoint.tensors:
        others = (*_partners(name), *_reshaped(checkpoint.tensors[name], stats))
        source = next((n for n in (name, *others) if n in stats.imatrix), None)
        if source is not None:
            found[name] = source
    return found


def _reshaped(info: TensorInfo, stats: Stats) -> tuple[str, ...]:
    """ik_llama.cpp's name of MLA's matrices, which it turns into slices while it runs: taken where sizes agree."""
    other = f"{info.name} (reshaped)"
    slices = info.shape[0] if len(info.shape) == 3 else 1
    fits = other in stats.imatrix and stats.imatrix[other].sum2.size == slices * info.shape[-1]
    return (other,) if fits else ()


def _partners(name: str) -> tuple[str, ...]:
    """Names with the same input, of which one is the others in one."""
    part = _PART.match(name)
    if part is None:
        return ()
    block, own, kind = part[1], part[2], part[3] or ""
    whole, *parts = next(group for group in _SAME_INPUT if own in group)
    others = parts if own == whole else [whole]
    return tuple(f"{block}{other}{kind}.weight" for other in others)


# -- experts


@dataclass(frozen=True)
class _Kept:
    """``ids`` by layer of the source's experts; ``always``: the stats are known to be of the source. ``experts``:
    how many the source had, where the file says it."""

    ids: Mapping[int, tuple[int, ...]]
    always: bool
    experts: int | None


def _kept_since(stats: Stats, checkpoint: Checkpoint, label: str) -> _Kept:
    """Which experts were kept since the stats' model; CollabError for stats of another model."""
    values = {key: meta.value for key, meta in checkpoint.metadata.items()}
    ids = kept_experts(checkpoint.metadata)
    experts = values.get(SOURCE_EXPERTS)
    known = experts if isinstance(experts, int) else None
    if stats.model_id is None or stats.model_id == model_id(checkpoint):
        return _Kept(ids if stats.model_id is None else {}, False, known)
    if ids and stats.model_id == values.get(SOURCE_MODEL_ID):
        return _Kept(ids, True, known)
    raise CollabError(f"{label} was calibrated on another model than {checkpoint.address}; calibrate this one")


def _sized(entry: ImatrixEntry, info: TensorInfo, kept: _Kept, where: str) -> tuple[ImatrixEntry, bool]:
    """The entry with this tensor's slices, and whether experts were picked from it; CollabError when none fits."""
    slices, n = (info.shape[0] if len(info.shape) == 3 else 1), info.shape[-1]
    ids = kept.ids.get(info.layer or 0) if info.by_expert and len(info.shape) == 3 else None
    fits = entry.sum2.size == slices * n and len(entry.count) in (1, slices)
    if fits and not (ids and kept.always):
        return entry, False
    stored = entry.sum2.size // n
    if ids and entry.sum2.size == stored * n and len(entry.count) in (1, stored) and _holds(stored, ids, kept):
        rows = entry.sum2.reshape(stored, n)[list(ids)]
        if len(entry.count) == 1:
            return ImatrixEntry(rows.reshape(1, -1), entry.count), True
        return ImatrixEntry(rows, entry.count[list(ids)]), True
    raise CollabError(
        f"{where} has {entry.sum2.size:,} sums and {len(entry.count)} counts, the tensor {slices} slices of rows of "
        f"{n:,}; calibrate this model"
    )


def _holds(experts: int, ids: tuple[int, ...], kept: _Kept) -> bool:
    return experts > max(ids) and kept.experts in (None, experts)


def _routing_of(routing: LayerRouting, layer: int, checkpoint: Checkpoint, kept: _Kept, label: str) -> LayerRouting:
    router = next((i for i in checkpoint.tensors.values() if i.layer == layer and i.role == Role.EXPERT), None)
    ids, experts = kept.ids.get(layer), len(routing.count)
    if router is None or (experts == router.shape[0] and not (ids and kept.always)):
        return routing
    if ids and _holds(experts, ids, kept):
        at = list(ids)
        weights, reap = (None if s is None else s[at] for s in (routing.weight_sum, routing.reap_sum))
        return LayerRouting(routing.tokens, routing.count[at], weights, reap)
    raise CollabError(
        f"{label} has {experts} experts in layer {layer}, {checkpoint.address} has {router.shape[0]}: "
        "it is of another model"
    )


def _without_wiped(entry: ImatrixEntry, info: TensorInfo) -> tuple[ImatrixEntry, int]:
    """The entry with counts of 0 where all sums are zero, and how many such slices there were: no data, not zero
    importance, with which every column of the slice would count for nothing."""
    slices = info.shape[0] if len(info.shape) == 3 else 1
    rows = entry.sum2.reshape(slices, -1)
    count = np.broadcast_to(entry.count, slices)
    empty = ~rows.any(axis=1) & (count > 0)
    if not empty.any():
        return entry, 0
    return ImatrixEntry(rows, np.where(empty, 0, count).astype(np.float32)), int(empty.sum())


# -- notes


def _shared_note(names: Mapping[str, str]) -> tuple[str, ...]:
    shared = [f"{name} that of {source}" for name, source in names.items() if name != source]
    if not shared:
        return ()
    return (f"{len(shared)} tensors have the importance of a tensor with the same input: {few(shared)}",)


def _left_out_note(stats: Stats, names: Mapping[str, str]) -> tuple[str, ...]:
    unknown = sorted(set(stats.imatrix) - set(names.values()))
    if not unknown:
        return ()
    return (f"{len(unknown)} of the {len(stats.imatrix)} tensors in the stats are not in the model: {few(unknown)}",)


def _wiped_note(wiped: Mapping[str, int]) -> tuple[str, ...]:
    if not wiped:
        return ()
    where = few([f"{count} of {name}" for name, count in wiped.items()])
    return (
        f"the stats count tokens but have sums of zero for {where}: taken as without data, so an expert borrows "
        "from its layer, and all columns of another tensor count alike",
    )


def _pruned_note(pruned: bool) -> tuple[str, ...]:
    if not pruned:
        return ()
    return (
        "the stats are of the model that this one was pruned from: the kept experts' part of them counts "
        "(collab.kept_experts), measured while the others still took tokens",
    )


def _order_note(kept: _Kept) -> tuple[str, ...]:
    """Sizes cannot tell whose order an importance matrix is in when all experts were kept, in another one."""
    if kept.always or not any(sorted(ids) == list(range(len(ids))) != list(ids) for ids in kept.ids.values()):
        return ()
    return (
        "this file has its experts in another order than the model it was made from (collab.kept_experts): an "
        "importance matrix made with that one gives each expert another's importance",
    )
