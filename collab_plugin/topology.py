"""The shape of a Mixture-of-Experts model, read from GGUF metadata and tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collab_plugin.checkpoint.roles import Role


@dataclass(frozen=True)
class Topology:
    """``inspect``'s result.

    ``moe_layers``: block numbers with routed experts. ``expert_count`` E and ``experts_used`` k are
    one scalar for all layers (llama.cpp: llama-model.cpp:1331). ``groups`` and ``groups_used`` are 1
    without group-limited routing; groups are contiguous id ranges of E / groups experts.
    ``gating`` is "softmax", "sigmoid" or "softmax-after-top-k"; ``renormalises`` tells whether router
    weights are divided by their sum over the chosen k; ``weights_scale`` multiplies them afterwards.
    ``role_bytes`` and ``role_parameters``: per role, at the storage types.
    """

    name: str
    architecture: str
    block_count: int
    moe_layers: tuple[int, ...]
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
