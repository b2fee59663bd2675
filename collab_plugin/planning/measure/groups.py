"""Tensors that are probed together: a part of the model (role, and side of the experts) at a depth."""

from __future__ import annotations

from dataclasses import dataclass

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.formats.ggml_types import ONLY_COPIED, TYPES
from collab_plugin.formats.tensor_names import Role

BANDS = 3


@dataclass(frozen=True)
class Group:
    """``part``: role, and for experts "down" or "gate/up"; ``tensors`` in the checkpoint's order."""

    part: str
    tensors: tuple[str, ...]


def part_of(info: TensorInfo) -> str:
    """The role; experts are split, because the error of `down` meets the residual stream directly."""
    if info.role in (Role.EXPERT, Role.SHARED_EXPERT, Role.FFN):
        return f"{info.role} {'down' if '_down' in info.name else 'gate/up'}"
    return str(info.role)


def coarse(checkpoint: Checkpoint) -> list[Group]:
    """Parts × depth: layers in three bands, as equal as they come; of tensors whose type can change."""
    by_part: dict[str, list[str]] = {}
    for name, info in checkpoint.tensors.items():
        if quantizable(info) and info.type.name in (*TYPES, *ONLY_COPIED):
            by_part.setdefault(part_of(info), []).append(name)
    groups = []
    for part, names in by_part.items():
        layers = sorted({layer for n in names if (layer := checkpoint.tensors[n].layer) is not None})
        bands = [layers[len(layers) * b // BANDS : len(layers) * (b + 1) // BANDS] for b in range(BANDS)]
        if not layers:
            groups.append(Group(part, tuple(names)))
        groups += [
            Group(part, tuple(n for n in names if checkpoint.tensors[n].layer in band)) for band in bands if band
        ]
    return groups


def split(group: Group, checkpoint: Checkpoint) -> tuple[Group, ...]:
    """Halve the group's layers, or, within one layer, its tensors; () when nothing is left to split."""
    if len(group.tensors) == 1:
        return ()
    layers = sorted({checkpoint.tensors[n].layer or 0 for n in group.tensors})
    if len(layers) == 1:
        middle = len(group.tensors) // 2
        return Group(group.part, group.tensors[:middle]), Group(group.part, group.tensors[middle:])
    low = set(layers[: len(layers) // 2])
    first = tuple(n for n in group.tensors if (checkpoint.tensors[n].layer or 0) in low)
    return Group(group.part, first), Group(group.part, tuple(n for n in group.tensors if n not in first))
