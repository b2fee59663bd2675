"""The tensors of routed experts, and what else there is to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.formats.tensor_names import Role
from collab_plugin.placement.machine_profile import ReadMatrix


class TypedBytes(NamedTuple):
    """Bytes that are read for one token, of weights of one ggml type."""

    type: str
    bytes: float


@dataclass(frozen=True)
class ExpertTensor:
    """All experts of one layer and projection. ``read``: bytes of them that one token reads."""

    name: str
    layer: int
    type: str
    experts: int
    bytes: int
    read: float


def expert_tensors(checkpoint: Checkpoint, used: int) -> list[ExpertTensor]:
    """Those of ``checkpoint``, by layer and name; a token uses ``used`` experts of each."""
    found = [
        ExpertTensor(
            info.name, info.layer, info.type.name, info.shape[0], info.nbytes, info.nbytes * used / info.shape[0]
        )
        for info in checkpoint.tensors.values()
        if info.role == Role.EXPERT and info.layer is not None
    ]
    return sorted(found, key=lambda tensor: (tensor.layer, tensor.name))


def other_reads(tensors: Iterable[TensorInfo]) -> list[TypedBytes]:
    """What every token reads beside routed experts: all of it, but one row of an embedding that is no head too."""
    listed = list(tensors)
    tied = all(info.name != "output.weight" for info in listed)
    return [
        TypedBytes(info.type.name, info.nbytes)
        for info in listed
        if info.role != Role.EXPERT and (tied or info.role != Role.EMBEDDING)
    ]


def read_matrices(checkpoint: Checkpoint, used: int) -> tuple[ReadMatrix, ...]:
    """The shapes of all matrices that a token is multiplied with, each once; a token uses ``used`` experts."""
    found: dict[tuple[str, int, int, int], float] = {}
    tied = "output.weight" not in checkpoint.tensors
    for info in checkpoint.tensors.values():
        if len(info.shape) < 2 or (info.role == Role.EMBEDDING and not tied):
            continue
        expert = info.role == Role.EXPERT
        key = (info.type.name, info.shape[-1], info.shape[-2], used if expert else 1)
        read = info.nbytes * (used / info.shape[0] if expert else 1)
        found[key] = found.get(key, 0.0) + read
    return tuple(ReadMatrix(*key, read) for key, read in found.items())


def layer_bytes(tensors: Iterable[ExpertTensor]) -> dict[int, int]:
    """Layer -> bytes of one expert, over its projections."""
    found: dict[int, int] = {}
    for tensor in tensors:
        found[tensor.layer] = found.get(tensor.layer, 0) + -(-tensor.bytes // tensor.experts)
    return found
