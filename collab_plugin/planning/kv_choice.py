"""Which type of the KV cache goes with the better plan: a small one leaves the file more bytes and costs something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from collab_plugin.errors import CollabError
from collab_plugin.placement.run_setup import KvType
from collab_plugin.plans.plan import Plan

LOSS: Mapping[KvType, float] = {"f32": 0.0, "f16": 0.0, "q8_0": 0.0001, "q4_0": 0.0038}
"""KL divergence, in nats, from the same model with an f16 cache: the mean of both trained models on held-out text, in
windows of 512 tokens (benchmarks/scale/running_memory.py: q8_0 0.000056 and 0.00014, q4_0 0.0028 and 0.0047)."""


def with_best_cache(kinds: Sequence[KvType], made: Callable[[KvType], Plan]) -> Plan:
    """The plan ``made(kind)`` beside a cache of that type, of the one where both together are predicted to cost least.

    Its last note says which type that is and what the others would cost. CollabError where no plan fits beside any.
    """
    plans: dict[KvType, Plan] = {}
    refused: CollabError | None = None
    for kind in dict.fromkeys(kinds):
        try:
            plans[kind] = made(kind)
        except CollabError as error:  # its cache leaves too little
            refused = error
    if not plans:
        assert refused is not None
        raise refused
    costs = {kind: (plan.predicted_kld or 0.0) + LOSS[kind] for kind, plan in plans.items()}
    best = min(costs, key=lambda kind: (costs[kind], LOSS[kind]))
    others = ", ".join(f"{kind} {cost:.4g}" for kind, cost in costs.items() if kind != best)
    told = (
        f"run it with a KV cache of {best}: plan and cache are predicted to cost {costs[best]:.4g} nats together"
        f"{f', with {others}' if others else ''}; the cache's part, {LOSS[best]:g} here, was measured on small models"
    )
    return replace(plans[best], notes=(*plans[best].notes, told))
