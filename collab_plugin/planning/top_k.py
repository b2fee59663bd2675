"""How many experts a token uses after pruning."""

from __future__ import annotations

from collab_plugin.checkpoint.topology import Topology


def scaled_top_k(topology: Topology, kept: int) -> int:
    """k' = k × kept share, rounded half up, at least 1 (8 of 256 at 192 kept: 6)."""
    return max(1, (2 * topology.experts_used * kept + topology.expert_count) // (2 * topology.expert_count))


def weight_note(topology: Topology, kept: int, used: int) -> str | None:
    """What pruning does to the router weights where they are not renormalised, else None.

    No constant can undo it: the missing share differs from token to token, so nothing is compensated.
    """
    if topology.renormalises or (kept == topology.expert_count and used == topology.experts_used):
        return None
    if topology.gating == "softmax" and kept < topology.expert_count:
        return (
            "this router does not renormalise over top-k: softmax over the experts that stay gives each "
            "of them more weight, by a factor that differs from token to token and cannot be folded into weights"
        )
    return (
        "this router does not renormalise over top-k: with fewer experts a token the routed output gets "
        "smaller by the weights of those left out"
    )
