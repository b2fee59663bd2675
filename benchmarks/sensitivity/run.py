"""How well the planner predicts: rank correlation of predicted and measured KL divergence, of plans at random and near
the one that is chosen.

    python -m benchmarks.sensitivity.run [MODEL ...] [--random 8] [--near 8] [--cluster ADDRESS]
        [-o benchmarks/results]

A random plan gives every tensor a random type from IQ1_S to Q6_K, and every second one also drops up to a quarter of
the experts. A plan near the chosen one is what `plan` makes with probes at 2.5 bits, with the type of every second
tensor, on average, moved to the next smaller or larger one: plans that compete. Predictions: the sum of relative errors
("error alone"), default weights, and weights probed on the calibration text. Measured on the validation text. Prints
the weights and the correlations; writes sensitivity.csv and sensitivity.png, in which models that are left out stay.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.stats import spearmanr

import collab_plugin as cp
from benchmarks.quality.bench import ROOT, Bench, trained_models
from benchmarks.sensitivity.scatter import scatter
from benchmarks.sensitivity.tried import KINDS, NEAR, RANDOM, Tried, read_tried, write_tried
from collab_plugin.formats.ggml_types import SUPER_BLOCK, bits_per_weight
from collab_plugin.planning.candidates import Candidate, Candidates
from collab_plugin.planning.measure.groups import part_of
from collab_plugin.planning.predictor import Predictor, predictor_of
from collab_plugin.planning.search_space import notches
from collab_plugin.planning.type_choices import type_choices
from collab_plugin.planning.type_limits import Limits
from collab_plugin.progress import untold
from collab_plugin.quantize.error import ErrorTable

TYPES = tuple(k for k in SUPER_BLOCK if bits_per_weight(k) <= bits_per_weight("Q6_K"))
SIZE = 2.5
"""Bits per weight of the plan that is changed: where all experts stay and most types are in use."""
MOVED = 0.5
"""Share of the tensors whose type is moved by one."""


@dataclass(frozen=True)
class Untried:
    """A plan that is to be measured; the other fields are those of `Tried`."""

    plans: str
    seed: int
    expert_count: int
    plan: cp.Plan
    predicted: Mapping[str, float]


class Trial:
    """Plans of one model, made and measured."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.candidates = Candidates(bench.planning(None))
        self.choices = type_choices(self.candidates.planning, Limits({}, {}))

    @cached_property
    def predictors(self) -> dict[str, Predictor]:
        """By kind, for the pruning that `Bench.planning` asks for."""
        sources = {"default weights": None, "probed": self.bench.sensitivity}
        return {kind: predictor_of(Candidates(self.bench.planning(source))) for kind, source in sources.items()}

    def random(self, seed: int) -> Untried:
        """Random types, and for odd seeds fewer experts."""
        rng, t = np.random.default_rng(seed), self.bench.topology
        counts = [c for c in notches(self.candidates.planning) if c >= 0.75 * t.expert_count]
        count = int(rng.choice(counts)) if seed % 2 else t.expert_count
        types = {}
        for name, choices in self.choices.items():
            types[name] = str(rng.choice([kind for kind in choices if kind in TYPES] or list(choices)))
        return self._untried(RANDOM, seed, self.candidates.candidate(count, t.experts_used), types)

    @cached_property
    def chosen(self) -> cp.Plan:
        """The probed plan that `near` changes; all experts stay."""
        bench = self.bench
        return cp.plan(bench.checkpoint, stats=bench.stats, sensitivity=bench.sensitivity, budget=f"{SIZE}bpw",
                       keep="100%", kernels=bench.kernels, threads=bench.threads)  # fmt: skip

    def near(self, seed: int) -> Untried:
        """The chosen plan, with types moved by one."""
        rng = np.random.default_rng(seed)
        types = {}
        for name, choices in self.choices.items():
            kinds = sorted(choices, key=bits_per_weight)
            at = kinds.index(self.chosen.tensors[name].type)
            move = int(rng.choice((-1, 1))) if rng.random() < MOVED else 0
            types[name] = kinds[min(max(at + move, 0), len(kinds) - 1)]
        t = self.bench.topology
        return self._untried(NEAR, seed, self.candidates.candidate(t.expert_count, t.experts_used), types)

    def _untried(self, plans: str, seed: int, candidate: Candidate, types: Mapping[str, str]) -> Untried:
        bench = self.bench
        table = ErrorTable(bench.checkpoint, candidate.plan.pruning.kept, self.candidates.planning.imatrix,
                           bench.kernels, bench.threads, untold)  # fmt: skip
        errors = table.measure({n: (k,) for n, k in types.items()})
        predicted = {"error alone": sum(errors[n][k] for n, k in types.items())}
        for kind, predictor in self.predictors.items():
            cost = sum(predictor.weights[n] * errors[n][k] for n, k in types.items())
            predicted[kind] = predictor.total(cost, candidate.count, candidate.used)
        return Untried(plans, seed, candidate.count, self.candidates.finish(candidate, types, errors), predicted)

    def measured(self, some: Sequence[Untried], cluster: str | None) -> list[Tried]:
        """Built and evaluated, here or on the Ray cluster at that address."""
        if cluster is not None:
            self.bench.measure_on(cluster, [t.plan for t in some])
        return [self._measured(t) for t in some]

    def _measured(self, t: Untried) -> Tried:
        row = self.bench.built(f"{t.plans} {t.seed}", t.plans, t.plan.bits_per_weight, str(t.expert_count), t.plan)
        told = ", ".join(f"{k} {t.predicted[k]:.4f}" for k in KINDS)
        print(f"{row.model} {t.plans} {t.seed}: {t.expert_count} experts, {row.bpw:.2f} bpw, measured "
              f"{row.mean_kld:.4f}, {told}", flush=True)  # fmt: skip
        return Tried(row.model, t.plans, t.seed, t.expert_count, row.bpw, t.predicted, row.mean_kld)

    def show_weights(self) -> None:
        """Mean probed weight by part and layer, beside the default's."""
        by_part: dict[tuple[str, int], list[str]] = defaultdict(list)
        for name in self.predictors["probed"].weights:
            info = self.bench.checkpoint.tensors[name]
            by_part[part_of(info), -1 if info.layer is None else info.layer].append(name)
        print(f"{self.bench.model.name}: nats per unit of relative error of one tensor")
        print("| part | layer | probed | default |")
        for (part, layer), names in sorted(by_part.items()):
            shown = [mean(self.predictors[k].weights[n] for n in names) for k in ("probed", "default weights")]
            print(f"| {part} | {'' if layer < 0 else layer} | {shown[0]:.4f} | {shown[1]:.4f} |", flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--random", type=int, default=8)
    p.add_argument("--near", type=int, default=8)
    p.add_argument("--chunks", type=int, default=4, help="windows of 512 tokens of each text, or as many tokens")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--cluster", help="address of a Ray cluster that builds and measures the plans")
    p.add_argument("--probe-tokens", type=int, help="by default twice those of the calibration")
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    for model in a.models or trained_models():
        trial = Trial(Bench(model, a.work / model.name, a.chunks, a.threads, a.probe_tokens))
        trial.show_weights()
        some = [trial.random(seed) for seed in range(a.random)] + [trial.near(seed) for seed in range(a.near)]
        found = trial.measured(some, a.cluster)
        tell(found)
        rows = [r for r in read_tried(a.output / "sensitivity.csv") if r.model != model.name]
        write_tried(a.output / "sensitivity.csv", [*rows, *found])
    scatter(read_tried(a.output / "sensitivity.csv"), a.output / "sensitivity.png")


def tell(found: list[Tried]) -> None:
    for plans in (RANDOM, NEAR):
        some = [t for t in found if t.plans == plans]
        for kind in KINDS if some else ():
            rank = spearmanr([t.predicted[kind] for t in some], [t.measured for t in some]).statistic
            print(f"{some[0].model}, {plans}, {kind}: Spearman {rank:.3f} over {len(some)} plans")


if __name__ == "__main__":
    main()
