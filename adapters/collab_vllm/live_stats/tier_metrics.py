"""What tiers of experts did, in vLLM's own metrics: `GET /metrics` and `LLM.get_metrics()`.

vLLM shows what is in prometheus_client's registry of the process that answers. Workers count, in files that this reads
(tier_counts.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collab_vllm.experts.tiering.tier_counts import counted, new_folder

METRICS = {
    "hits": ("vllm:collab_expert_hits", "Choices of experts that were on the device."),
    "host": ("vllm:collab_expert_misses_host", "Choices of experts that the processor computed in host memory."),
    "copied": ("vllm:collab_expert_misses_copied", "Choices of experts whose weights were copied to the device."),
    "bytes": ("vllm:collab_expert_bytes_moved", "Bytes of expert weights copied to the device."),
    "moves": ("vllm:collab_expert_moves", "Experts that came to stay on the device, each in the place of another."),
}


class TierCollector:
    """One for the process; ``rank`` is the tensor-parallel rank, and ranks see the same tokens."""

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        found = list(counted())
        for field, (name, what) in METRICS.items():
            family = CounterMetricFamily(name, what, labels=["rank"])
            for rank, counts in found:
                family.add_metric([str(rank)], counts[field])
            yield family


_REGISTERED: list[TierCollector] = []


def publish_tier_counts() -> None:
    """Have workers that start from now on count, and this process tell it."""
    from prometheus_client import REGISTRY

    new_folder()
    if not _REGISTERED:
        _REGISTERED.append(TierCollector())
        REGISTRY.register(_REGISTERED[0])
