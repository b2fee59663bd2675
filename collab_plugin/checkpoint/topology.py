"""The shape of a Mixture-of-Experts model, read from GGUF metadata and tensor names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.checkpoint.families.routers import Router, router_of
from collab_plugin.checkpoint.prediction_layers import prediction_layers
from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role


@dataclass(frozen=True)
class Topology:
    """``inspect``'s result.

    ``moe_layers``: block numbers with routed experts. ``prediction_layers``: the last blocks of some files, which
    predict further tokens for speculative decoding; none of them is in ``moe_layers``, though they have experts.
    ``expert_count`` E and ``experts_used`` k are
    one scalar for all layers (llama.cpp: llama-model.cpp:1331). ``groups`` and ``groups_used`` are 1
    without group-limited routing; groups are contiguous id ranges of E / groups experts.
    ``gating`` is "softmax", "sigmoid", "softmax-after-top-k" or "sqrt-softplus"; ``renormalises`` tells whether router
    weights are divided by their sum over the chosen k; ``weights_scale`` multiplies them afterwards.
    ``role_bytes`` and ``role_parameters``: per role, at the storage types.
    """

    name: str
    architecture: str
    block_count: int
    moe_layers: tuple[int, ...]
    prediction_layers: tuple[int, ...]
    embedding_length: int
    expert_count: int
    experts_used: int
    shared_experts: int
    groups: int
    groups_used: int
    gating: str
    renormalises: bool
    weights_scale: float
    context_length: int
    role_bytes: Mapping[Role, int]
    role_parameters: Mapping[Role, int]

    @property
    def experts_per_group(self) -> int:
        return self.expert_count // self.groups

    @property
    def total_bytes(self) -> int:
        return sum(self.role_bytes.values())

    @property
    def total_parameters(self) -> int:
        return sum(self.role_parameters.values())


def topology_of(checkpoint: Checkpoint) -> Topology:
    """Read the topology; CollabError for a dense model or keys that contradict the tensors."""
    predicting = prediction_layers(checkpoint)
    with_experts = {t.layer for t in checkpoint.tensors.values() if t.role == Role.EXPERT and t.layer is not None}
    layers = tuple(sorted(with_experts - set(predicting)))
    meta = _Keys(checkpoint, layers)
    experts = meta.integer("expert_count", 0)
    _refuse_single_experts(checkpoint)
    if not layers or experts < 2:
        raise CollabError(
            f"{checkpoint.address} ({checkpoint.architecture}) has no routed experts: "
            "collab-plugin compresses Mixture-of-Experts models"
        )
    for info in checkpoint.tensors.values():
        if info.by_expert and info.shape[0] != experts:
            raise CollabError(f"{info.name} holds {info.shape[0]} experts, the metadata says {experts}")
    groups = max(meta.integer("expert_group_count", 1), 1)
    groups_used = max(meta.integer("expert_group_used_count", 0 if groups > 1 else 1), 0 if groups > 1 else 1)
    used = meta.integer("expert_used_count", 0)
    if not 1 <= used <= experts:
        raise CollabError(f"expert_used_count is {used} with {experts} experts")
    _check_groups(experts, groups, groups_used, used)
    return Topology(
        name=str(meta.general("general.name", checkpoint.path.stem)),
        architecture=checkpoint.architecture,
        block_count=meta.integer("block_count", 0),
        moe_layers=layers,
        prediction_layers=predicting,
        embedding_length=meta.integer("embedding_length", 0),
        expert_count=experts,
        experts_used=used,
        shared_experts=meta.integer("expert_shared_count", 0) or _has_shared(checkpoint),
        groups=groups,
        groups_used=groups_used,
        gating=_gating(router_of(checkpoint.architecture), meta),
        renormalises=_renormalises(router_of(checkpoint.architecture), meta),
        weights_scale=meta.number("expert_weights_scale", 1.0) or 1.0,
        context_length=meta.integer("context_length", 0),
        role_bytes=_sum_by_role(checkpoint, lambda t: t.nbytes),
        role_parameters=_sum_by_role(checkpoint, lambda t: t.n_elements),
    )


def _check_groups(experts: int, groups: int, groups_used: int, used: int) -> None:
    """CollabError for groups that no router chooses ``used`` experts from; llama.cpp aborts on most of them
    (llama-model.cpp:1365-1370)."""
    if experts % groups or groups_used > groups or (groups > 1 and groups_used < 1):
        raise CollabError(f"{experts} experts in {groups} groups, {groups_used} used, cannot be routed")
    if groups > 1 and used > groups_used * (experts // groups):
        raise CollabError(
            f"expert_used_count is {used}, and {groups_used} groups of {experts // groups} experts serve no more than "
            f"{groups_used * (experts // groups)}: correct the metadata"
        )


class _Keys:
    """``layers``: those with experts; a list with a value for each block is told by what it says of these."""

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[int]) -> None:
        self._meta, self._arch, self._layers = checkpoint.metadata, checkpoint.architecture, layers

    def general(self, key: str, default: Any) -> Any:
        return self._meta[key].value if key in self._meta else default

    def get(self, key: str, default: Any) -> Any:
        return self.general(f"{self._arch}.{key}", default)

    def integer(self, key: str, default: int) -> int:
        value = self.get(key, default)
        if isinstance(value, list):
            told = {value[layer] for layer in self._layers if layer < len(value)} or set(value)
            value = told.pop() if len(told) == 1 else value
        if not isinstance(value, int):
            raise CollabError(
                f"{self._arch}.{key} is {str(value)[:60]}, not one integer: per-layer values are not supported"
            )
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if not isinstance(value, (int, float)):
            raise CollabError(f"{self._arch}.{key} is {str(value)[:60]!r}, not a number")
        return float(value)


def _has_shared(checkpoint: Checkpoint) -> int:
    return int(any(t.role == Role.SHARED_EXPERT for t in checkpoint.tensors.values()))


def _renormalises(router: Router, meta: _Keys) -> bool:
    return bool(meta.get("expert_weights_norm", False)) if router.renormalises is None else router.renormalises


def _gating(router: Router, meta: _Keys) -> str:
    code = meta.integer("expert_gating_func", 0)
    known = {0: router.gating, 1: "softmax", 2: "sigmoid", 3: "softmax-after-top-k", 4: "sqrt-softplus"}
    return known.get(code, f"unknown ({code})")


_SINGLE_EXPERT = re.compile(r"^blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight$")


def _refuse_single_experts(checkpoint: Checkpoint) -> None:
    """llama.cpp's layout until March 2024, which its current version does not load either."""
    single = next((name for name in checkpoint.tensors if _SINGLE_EXPERT.match(name)), None)
    if single is not None:
        raise CollabError(
            f"{checkpoint.address} holds each expert as a tensor of its own ({single}), a layout of 2023 that is not "
            "read any more: convert the original model again with a current llama.cpp"
        )


def _sum_by_role(checkpoint: Checkpoint, size: Callable[[TensorInfo], int]) -> dict[Role, int]:
    sums: dict[Role, int] = {}
    for info in checkpoint.tensors.values():
        sums[info.role] = sums.get(info.role, 0) + size(info)
    return sums
