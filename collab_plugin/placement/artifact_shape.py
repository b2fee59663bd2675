"""What running an artifact costs is decided by its sizes: those of a plan, or of a file that exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import Role, role_of
from collab_plugin.plans.plan import Plan, TensorPlan


@dataclass(frozen=True)
class TensorSize:
    """``weights``: how many values; ``bytes`` without padding."""

    weights: int
    bytes: int


@dataclass(frozen=True)
class ArtifactShape:
    """``metadata``: GGUF keys, None where only a plan is at hand. ``experts`` a layer holds and a token ``used``.

    ``bytes``: of the whole file, header and padding included.
    """

    name: str
    architecture: str
    metadata: Mapping[str, MetaValue] | None
    tensors: Mapping[str, TensorSize]
    experts: int
    used: int
    bytes: int

    @property
    def active_bytes(self) -> int:
        """Bytes of weights that making one token reads: all but routed experts, and of those the used ones.

        One row of the embedding is read, not the table; experts of a layer count alike. Without the KV cache.
        """
        experts = sum(t.bytes for n, t in self.tensors.items() if role_of(n) == Role.EXPERT)
        rest = sum(t.bytes for n, t in self.tensors.items() if role_of(n) not in (Role.EXPERT, Role.EMBEDDING))
        if "output.weight" not in self.tensors:  # tied: the table is the head
            rest += sum(t.bytes for n, t in self.tensors.items() if role_of(n) == Role.EMBEDDING)
        return rest + (experts * self.used // self.experts if self.experts else 0)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts."""
        return sum(t.bytes for n, t in self.tensors.items() if role_of(n) == Role.EXPERT)


def weights_of(tensor: TensorPlan) -> int:
    """Return how many weights the tensor has: exact, because a type's block has a fixed size."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type]]
    return tensor.nbytes * int(block) // int(size)


def shape_of_plan(plan: Plan, metadata: Mapping[str, MetaValue] | None) -> ArtifactShape:
    """The artifact that ``plan`` describes; ``metadata`` of its model, if at hand."""
    return ArtifactShape(
        plan.source.name,
        plan.source.architecture,
        metadata,
        {name: TensorSize(weights_of(t), t.nbytes) for name, t in plan.tensors.items()},
        plan.pruning.expert_count,
        plan.activation.used,
        plan.bytes,
    )


def shape_of_checkpoint(checkpoint: Checkpoint) -> ArtifactShape:
    """A model that exists. Bytes between tensors are left out: an engine loads tensors only."""
    topology = topology_of(checkpoint)
    sizes = {name: TensorSize(info.n_elements, info.nbytes) for name, info in checkpoint.tensors.items()}
    return ArtifactShape(
        topology.name,
        checkpoint.architecture,
        checkpoint.metadata,
        sizes,
        topology.expert_count,
        topology.experts_used,
        sum(size.bytes for size in sizes.values()),
    )
