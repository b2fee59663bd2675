"""The tensors of routed experts, and what else there is to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.formats.tensor_names import Role


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


def layer_bytes(tensors: Iterable[ExpertTensor]) -> dict[int, int]:
    """Layer -> bytes of one expert, over its projections."""
    found: dict[int, int] = {}
    for tensor in tensors:
        found[tensor.layer] = found.get(tensor.layer, 0) + -(-tensor.bytes // tensor.experts)
    return found
