"""In which layers does pruning do its harm? Experts dropped in one layer alone, beside the same in all layers at once.

    python -m benchmarks.sensitivity.pruned_layers MODEL ... [--work /tmp/collab-quality] [-o benchmarks/results]

By Σ g over the layer (criterion `mass`), as many experts a token as before, on six windows of the calibration texts.
Prints a line a model and share; writes pruned_layers.csv, where other models stay.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from collab_llamacpp.llamacpp_engine import LlamaCppEngine

from benchmarks.quality.bench import ROOT, Bench
from benchmarks.sensitivity.prunings import keep_others
from collab_plugin.engines.disturbance import Disturbance
from collab_plugin.engines.engine import Windows
from collab_plugin.planning.candidates import Candidates
from collab_plugin.progress import untold

SHARES = (0.875, 0.75, 0.5)
CHUNKS = 2


@dataclass(frozen=True)
class PrunedLayer:
    """KL divergence, in nats, of experts dropped in ``layer`` alone; None: in all layers."""

    model: str
    experts: int
    expert_count: int
    layer: int | None
    kld: float


def pruned_layers(bench: Bench, share: float) -> Iterator[PrunedLayer]:
    """All layers first, then each."""
    t, candidates = bench.topology, Candidates(bench.planning(None, criterion="mass"))
    count = int(t.expert_count * share)
    kept = candidates.kept(count, t.experts_used).kept
    dropped = [Disturbance(kept=kept), *(Disturbance(kept={layer: kept[layer]}) for layer in t.moe_layers)]
    windows = Windows(bench.calibration, bench.ctx, -(-CHUNKS * 512 // bench.ctx), seed=0)
    effects = LlamaCppEngine().disturb(bench.original, dropped, {}, windows, threads=bench.threads, progress=untold)
    for layer, effect in zip((None, *t.moe_layers), effects.each, strict=True):
        yield PrunedLayer(bench.model.name, t.expert_count, count, layer, effect.mean_kld)


def summary(rows: list[PrunedLayer]) -> str:
    together, each = rows[0].kld, [row.kld for row in rows[1:]]
    return (
        f"| {rows[0].model} | {rows[0].expert_count} of {rows[0].experts} | {together:.4f} | {sum(each):.4f} "
        f"| {each[0] / sum(each):.0%} |"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    print("| model | experts kept | all layers at once | the layers one by one, added up | of that the first |")
    print("|---|---|---|---|---|")
    found: list[PrunedLayer] = []
    for model in a.models:
        bench = Bench(model, a.work / model.name, 4, a.threads)
        for share in SHARES:
            rows = list(pruned_layers(bench, share))
            print(summary(rows), flush=True)
            found += rows
    out = a.output / "pruned_layers.csv"
    others = keep_others(out, {row.model for row in found})
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in fields(PrunedLayer))
        writer.writerows(others)
        writer.writerows(astuple(row) for row in found)


if __name__ == "__main__":
    main()
