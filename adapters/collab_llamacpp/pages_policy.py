"""Which experts' pages stay in memory where llama.cpp runs a file that is larger: by what policy."""

from __future__ import annotations

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.formats.tensor_names import Role
from collab_plugin.placement.builtin_policies import LFU_STEADY
from collab_plugin.placement.placement import Placement, PolicyUse
from collab_plugin.placement.policy import PlacementPolicy
from collab_plugin.placement.usable_memory import usable_memory
from collab_plugin.plugins.manager import registry

DEFAULT = PolicyUse(LFU_STEADY.name, LFU_STEADY.values, True)


def pages_policy(checkpoint: Checkpoint, placement: Placement | None) -> PolicyUse | None:
    """The placement's, if it moves experts, else `DEFAULT`; None where memory holds the whole file, and for a model
    without experts."""
    experts = any(info.role == Role.EXPERT for info in checkpoint.tensors.values())
    if not experts or sum(info.nbytes for info in checkpoint.tensors.values()) <= usable_memory():
        return None
    use = DEFAULT if placement is None or placement.experts is None else placement.experts.policy
    known = registry().placement_policies.get(use.name)
    return DEFAULT if known is None or known.dynamic is None else use


def policy_of(use: PolicyUse) -> PlacementPolicy:
    """The policy with the parameters that ``use`` gives it. KeyError where no plugin brings it."""
    return registry().placement_policies[use.name].told(use.parameters)


def read_by_every_token(checkpoint: Checkpoint) -> int:
    """Bytes of all that are no routed experts."""
    return sum(info.nbytes for info in checkpoint.tensors.values() if info.role != Role.EXPERT)
