"""`inspect`: what a model is made of."""

from __future__ import annotations

from collab_plugin.api.arguments import Model, opened
from collab_plugin.checkpoint.topology import Topology, topology_of


def inspect(model: Model) -> Topology:
    """Return the layers, experts, router, and the parameters and bytes of each role.

    Example: ``cp.inspect("DeepSeek-V3/").expert_count``
    """
    return topology_of(opened(model))
