"""Serve one text through vLLM again and again, with experts in two memories by each policy; a child of vllm_tiers.py.

tiers_child.py MODEL JOB: JOB is JSON: ``calibration`` token ids, ``parts`` token ids by name, ``rooms`` a layer,
``ways`` as [policy, misses, interval]. Prints a JSON line a measurement. Runs in vLLM's environment.

The engine is started once. Between measurements the layers get new tiers, made of the weights that they hold. One
token is computed at a time, as in decoding, but the text says which.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np
import torch
from collab_vllm.experts.host.ggml_cpu import ggml_cpu
from collab_vllm.experts.hot import TierStart
from collab_vllm.experts.tiering.tier_counts import TierCounts
from collab_vllm.experts.tiering.tiered_layer import TieredLayer
from vllm import LLM, SamplingParams

from collab_plugin.placement.builtin_policies import POLICIES
from collab_plugin.placement.policy import LayerUse, PlacementPolicy, hot_experts
from collab_plugin.placement.simulate import best_possible, replay
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import LayerRouting

WINDOW = 128
POLICY = {policy.name: policy for policy in POLICIES}


class Recording:
    """In a holder's place: keeps what the router chose."""

    def __init__(self, inner: TieredLayer) -> None:
        self.inner = inner
        self.chosen: list[np.ndarray[Any, np.dtype[np.int16]]] = []

    def compute(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        self.chosen.append(ids.numpy().astype(np.int16))
        return self.inner.compute(x, weights, ids)


def main(model: str, job: dict[str, Any]) -> None:
    llm = LLM(
        model, dtype="float32", enforce_eager=True, max_model_len=WINDOW + 8, max_num_seqs=1,
        max_num_batched_tokens=1, enable_chunked_prefill=True, enable_prefix_caching=False, skip_tokenizer_init=True,
        load_format="collab", model_loader_extra_config={"hot": 1, "policy": "uniform"},
    )  # fmt: skip
    methods = llm.apply_model(tiered_methods)[0]
    counted = trace(llm, methods, job["calibration"])
    uses = [
        LayerUse(layer, counted.experts, LayerRouting(counted.tokens, row))
        for layer, row in zip(counted.layers, counted.counts, strict=True)
    ]
    chosen = [trace(llm, methods, tokens).chosen for tokens in job["parts"].values()]
    whole = RoutingTrace(np.concatenate(chosen), counted.layers, counted.experts)
    for room in job["rooms"]:
        optimum = best_possible(whole, [room * len(methods)])[0].hit_rate
        tell({"policy": "optimum", "misses": "", "interval": 0, "room": room, "simulated": optimum})
        for name, misses, interval in job["ways"]:
            for method, use in zip(methods, uses, strict=True):
                method.holder = begun_anew(method.holder, POLICY[name], use, room, misses, interval, whole)
            simulated = replay(whole, POLICY[name], [room * len(methods)], uses)[0].hit_rate
            found = {"policy": name, "misses": misses, "interval": interval, "room": room, "simulated": simulated}
            for part, tokens in job["parts"].items():
                before, begun = total(methods), time.perf_counter()
                run(llm, tokens)
                seconds, after = time.perf_counter() - begun, total(methods)
                choices = sum(after[n] - before[n] for n in ("hits", "host", "copied"))
                found |= {
                    f"{part} hits": (after["hits"] - before["hits"]) / choices,
                    f"{part} mb": (after["bytes"] - before["bytes"]) / 1e6,
                    f"{part} tokens_s": len(tokens) / seconds,
                }
            tell(found)


def tell(found: dict[str, Any]) -> None:
    print("TIERS " + json.dumps(found), flush=True)


def tiered_methods(model: torch.nn.Module) -> list[Any]:
    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    return [method for method in methods if isinstance(getattr(method, "holder", None), TieredLayer)]


def begun_anew(
    layer: TieredLayer,
    policy: PlacementPolicy,
    use: LayerUse,
    room: int,
    misses: Any,
    interval: int,
    seen: RoutingTrace,
) -> TieredLayer:
    """The same weights in other tiers; a policy that learns nothing begins with an empty memory, as it is simulated."""
    empty = policy.dynamic is not None and not policy.learns
    hot = () if empty else tuple(hot_experts(policy, use, room))
    expected = use.heat * seen.chosen.shape[2] if policy.learns else np.zeros(use.experts)
    resident = TierStart(hot, policy, expected, room).resident_set(range(use.experts))
    counts = TierCounts(0)
    return TieredLayer(
        layer.layout, layer.whole, resident, torch.device("cpu"), ggml_cpu(), misses, interval, counts,
        lambda rows: rows,
    )  # fmt: skip


def trace(llm: LLM, methods: Sequence[Any], tokens: Sequence[int]) -> RoutingTrace:
    recordings = [Recording(method.holder) for method in methods]
    for method, recording in zip(methods, recordings, strict=True):
        method.holder = recording
    run(llm, tokens)
    for method, recording in zip(methods, recordings, strict=True):
        method.holder = recording.inner
    chosen = np.stack([np.concatenate(recording.chosen) for recording in recordings], axis=1)
    return RoutingTrace(chosen, tuple(range(len(methods))), len(recordings[0].inner.resident.slot))


def run(llm: LLM, tokens: Sequence[int]) -> None:
    wanted = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    windows = [{"prompt_token_ids": list(tokens[at : at + WINDOW])} for at in range(0, len(tokens), WINDOW)]
    llm.generate(windows, wanted, use_tqdm=False)


def total(methods: Sequence[Any]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for method in methods:
        for name, count in method.holder.counts.so_far().items():
            sums[name] = sums.get(name, 0) + count
    return sums


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
