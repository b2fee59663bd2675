"""What does pruning cost over what the dropped experts wrote? Probed prunings beside Σ u_l D_l of docs/method.md §6.

    python -m benchmarks.sensitivity.prunings MODEL ... [--work /tmp/collab-quality] [-o benchmarks/results]

Calibrates and probes a model where WORK/NAME does not have that yet. Only prunings that keep all experts a token count:
C of that page is their KL divergence over Σ u_l D_l. Prints a line a pruning and one a model; writes prunings.csv,
where other models stay.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import geometric_mean

from benchmarks.quality.bench import ROOT, Bench
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.learned_weights import learned_weights
from collab_plugin.planning.pruning_law import PRUNED_BESIDE_SHARED, pruned_alone, stream_prune_cost
from collab_plugin.stats.sensitivity_file import read_sensitivity


@dataclass(frozen=True)
class PrunedCost:
    """One probed pruning, in nats. ``stream``: Σ_l u_l D_l."""

    model: str
    shared_expert: bool
    criterion: str
    experts: int
    expert_count: int
    kld: float
    stderr: float
    stream: float

    @property
    def ratio(self) -> float:
        return self.kld / self.stream


def pruned_costs(bench: Bench) -> Iterator[PrunedCost]:
    """Each probed pruning of ``bench`` that leaves a token as many experts as before, in the order of probing."""
    planning = bench.planning(None, criterion="auto")
    assert planning.stats is not None
    prices = learned_weights(bench.checkpoint, bench.topology, planning.stats, planning.imatrix).prices
    by_rule = {rule: Candidates(one) for rule, one in planning.by_rule().items()}
    shared = any(info.role == Role.SHARED_EXPERT for info in bench.checkpoint.tensors.values())
    for p in read_sensitivity(bench.sensitivity).prunings:
        if p.experts_used == bench.topology.experts_used and p.rule in by_rule:
            candidates = by_rule[p.rule]
            kept = partial(_kept, candidates)
            cost = stream_prune_cost(bench.checkpoint, bench.topology, planning.stats, prices, kept)
            assert cost is not None, "the stats do not say what experts write"
            alone = pruned_alone(len(bench.topology.moe_layers))
            stream = cost(p.expert_count, p.experts_used) / (PRUNED_BESIDE_SHARED if shared else alone)
            yield PrunedCost(
                bench.model.name, shared, candidates.planning.criterion.name, bench.topology.expert_count,
                p.expert_count, p.kld, p.stderr, stream,
            )  # fmt: skip


def _kept(candidates: Candidates, count: int, used: int) -> Mapping[int, tuple[int, ...]]:
    return candidates.kept(count, used).kept


def summary(costs: list[PrunedCost]) -> str:
    ratios = [c.ratio for c in costs]
    return (
        f"{costs[0].model}, {'with a' if costs[0].shared_expert else 'no'} shared expert: {len(ratios)} prunings, "
        f"{min(ratios):.2f} to {max(ratios):.2f}, geometric mean {geometric_mean(ratios):.2f}"
    )


def keep_others(path: Path, models: set[str]) -> list[list[str]]:
    """Lines of the file that are of none of ``models``."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [line for line in list(csv.reader(file))[1:] if line[0] not in models]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    found = {m.name: list(pruned_costs(Bench(m, a.work / m.name, 4, a.threads))) for m in a.models}
    for costs in found.values():
        for c in costs:
            print(f"| {c.model} | {c.criterion} | {c.expert_count} of {c.experts} | {c.kld:.4f} ± {c.stderr:.4f} "
                  f"| {c.stream:.4f} | {c.ratio:.2f} |")  # fmt: skip
        print(summary(costs) if costs else "no prunings were probed")
    out = a.output / "prunings.csv"
    others = keep_others(out, set(found))
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in fields(PrunedCost))
        writer.writerows(others)
        writer.writerows(astuple(c) for costs in found.values() for c in costs)


if __name__ == "__main__":
    main()
