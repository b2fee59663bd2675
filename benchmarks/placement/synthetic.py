"""Placement policies on drawn traces with DeepSeek-V3's real skew and a stated temporal locality.

    python -m benchmarks.placement.synthetic COUNTS [--tokens 1200]

COUNTS: DeepSeek-V3-Pruning/inference/config_671B_expert_scores_seqlen_4k.json of github.com/Bobchenyx/CC-MoE, how often
each expert of DeepSeek-V3-0324 was chosen. Logits are the logarithms of the counts, with wanderings over three scales
of time (drawn_traces.py); groups of experts are left out. Real locality is not known from counts: the traces say what
a locality would give, and nothing of DeepSeek. The localities are none, and about the least and the most of four large
models (published_curves.py). Prints a table; writes placement_synthetic.csv.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from benchmarks.placement.drawn_traces import drawn
from benchmarks.vllm.load import write_csv
from collab_plugin.placement.builtin_policies import LFU_DECAY, LFU_STEADY, LRU_WARM, MOST_SELECTED
from collab_plugin.placement.policy_table import expected_hits
from collab_plugin.placement.simulate import OPTIMUM

RESULTS = Path(__file__).parents[1] / "results"
USED, SHARES, LOCALITIES = 8, (0.1, 0.25, 0.5), (0.0, 1.0, 2.4)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--tokens", type=int, default=1200)
    given = parser.parse_args(arguments)
    told = json.loads(given.counts.read_text())
    layers = tuple(sorted(int(name.removeprefix("layer_")) for name in told))
    counts = np.array([told[f"layer_{layer}"]["activations"] for layer in layers], np.int64)
    experts = counts.shape[1]
    routing = {n: cp.LayerRouting(int(row.sum()) // USED, row) for n, row in zip(layers, counts, strict=True)}
    uses = cp.uses_of(layers, experts, routing)
    logits = np.log(np.maximum(counts, 1e-3))
    rooms = [round(share * experts) * len(layers) for share in SHARES]
    rows: list[dict[str, Any]] = [
        {"locality": "the counts", "policy": "most-selected", "share": share,
         "hits": round(expected_hits(MOST_SELECTED, uses, room), 4), "moved_a_layer": 0}
        for share, room in zip(SHARES, rooms, strict=True)
    ]  # fmt: skip
    for locality in LOCALITIES:
        trace = cp.RoutingTrace(drawn(logits, USED, given.tokens, locality), layers, experts)
        found = {policy.name: cp.replay(trace, policy, rooms, uses)
                 for policy in (MOST_SELECTED, LRU_WARM, LFU_DECAY, LFU_STEADY)}  # fmt: skip
        found[OPTIMUM] = cp.best_possible(trace, rooms, filled=True)
        for name, results in found.items():
            for share, result in zip(SHARES, results, strict=True):
                moved = round(result.moved / trace.tokens / len(layers), 2)
                rows.append({"locality": locality, "policy": name, "share": share, "hits": round(result.hit_rate, 4),
                             "moved_a_layer": moved})  # fmt: skip
    write_csv(RESULTS / "placement_synthetic.csv", rows)
    table = Table("locality", "policy", *(f"{share:.0%} of the experts" for share in SHARES))
    for locality, policy in dict.fromkeys((row["locality"], row["policy"]) for row in rows):
        hits = [row["hits"] for row in rows if (row["locality"], row["policy"]) == (locality, policy)]
        table.add_row(str(locality), policy, *(f"{value:.1%}" for value in hits))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
