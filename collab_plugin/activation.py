"""How many experts a token uses after pruning: one number for all layers. Page: docs/method.md."""

from __future__ import annotations

from collab_plugin.plan import Activation
from collab_plugin.topology import Topology


def adjust(topology: Topology, keep: int, given: int | None) -> Activation:
    """Return k': ``given``, or the kept share of k, rounded half up, at least 1.

    One scalar: stock llama.cpp takes layer 0's value for top-k in every layer
    (llama-graph.cpp:1477), so a value a layer would make the model silently wrong.
    """
    k, total = topology.experts_used, topology.expert_count
    if given is not None:
        return Activation(k, given, "given")
    if keep == total:
        return Activation(k, k, "unchanged")
    rounded = (2 * k * keep + total) // (2 * total)
    return Activation(k, min(max(rounded, 1), keep), "share")


def weight_note(topology: Topology, keep: int, used: int) -> str | None:
    """Say what happens to the router weights when experts or k change, None when nothing does.

    Renormalising routers divide by the sum over the chosen k, so the weights of a token still add
    up to the scale. The others do not, and no constant factor undoes it: docs/method.md.
    """
    pruned, fewer = keep < topology.expert_count, used != topology.experts_used
    if topology.renormalises or topology.gating == "softmax-after-top-k" or not (pruned or fewer):
        return None
    effects = []
    if pruned and topology.gating == "softmax":
        effects.append(
            "the softmax runs over the kept experts alone, which raises each weight by one over the "
            "mass the token gave to dropped ones"
        )
    elif pruned:
        effects.append("each kept expert's weight is unchanged, and another may take a dropped one's place")
    if fewer:
        effects.append(f"{used} weights instead of {topology.experts_used} are summed, not rescaled")
    return (
        "the router does not renormalise over the chosen experts: "
        + "; ".join(effects)
        + "; the factor differs from token to token, so no exact compensation exists and none is applied"
    )
