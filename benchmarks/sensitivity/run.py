"""How well the planner predicts: rank correlation of predicted and measured KL divergence of random plans.

    python -m benchmarks.sensitivity.run [MODEL ...] [--plans 24] [-o benchmarks/results]

Every tensor of a random plan gets a random type from IQ1_S to Q6_K; half of the plans also drop up to
a quarter of the experts. Predictions: the sum of relative errors ("error alone"), default weights, and
weights probed on the calibration text. Measured on the validation text. Prints what the weights are and
the correlations; writes sensitivity.csv and sensitivity.png.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

import numpy as np
from scipy.stats import spearmanr

from benchmarks.quality.bench import Bench, trained_models
from collab_plugin.formats.ggml_types import SUPER_BLOCK, bits_per_weight
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.measure.groups import part_of
from collab_plugin.planning.predictor import Predictor, predictor_of
from collab_plugin.planning.search_space import notches
from collab_plugin.planning.type_choices import type_choices
from collab_plugin.planning.type_limits import Limits
from collab_plugin.progress import untold
from collab_plugin.quantize.error import ErrorTable

ROOT = Path(__file__).resolve().parents[2]
TYPES = tuple(k for k in SUPER_BLOCK if bits_per_weight(k) <= bits_per_weight("Q6_K"))
KINDS = ("error alone", "default weights", "probed")


@dataclasses.dataclass(frozen=True)
class Tried:
    """One random plan: predictions by kind, and what was measured (nats)."""

    model: str
    seed: int
    expert_count: int
    bpw: float
    predicted: dict[str, float]
    measured: float


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--plans", type=int, default=24)
    p.add_argument("--chunks", type=int, default=6)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--probe-tokens", type=int, help="by default twice those of the calibration")
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    rows: list[Tried] = []
    for model in a.models or trained_models():
        bench = Bench(model, a.work / model.name, a.chunks, a.threads, a.probe_tokens)
        show_weights(bench)
        found = [tried(bench, seed) for seed in range(a.plans)]
        for kind in KINDS:
            rank = spearmanr([t.predicted[kind] for t in found], [t.measured for t in found]).statistic
            ratio = median(t.predicted[kind] / t.measured for t in found)
            print(f"{model.name} {kind}: Spearman {rank:.3f} over {len(found)} plans, predicted / measured {ratio:.2f}")
        rows += found
    write(a.output / "sensitivity.csv", rows)
    plot(rows, a.output / "sensitivity.png")


def predictors(bench: Bench) -> dict[str, Predictor]:
    return {
        kind: predictor_of(Candidates(bench.planning(source)))
        for kind, source in (("default weights", None), ("probed", bench.sensitivity))
    }


def show_weights(bench: Bench) -> None:
    """Mean probed weight by part and layer, beside the default's."""
    kinds = predictors(bench)
    by_part: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name in kinds["probed"].weights:
        info = bench.checkpoint.tensors[name]
        by_part[part_of(info), -1 if info.layer is None else info.layer].append(name)
    print(f"{bench.model.name}: nats per unit of relative error of one tensor\n| part | layer | probed | default |")
    for (part, layer), names in sorted(by_part.items()):
        shown = [mean(kinds[k].weights[n] for n in names) for k in ("probed", "default weights")]
        print(f"| {part} | {'' if layer < 0 else layer} | {shown[0]:.4f} | {shown[1]:.4f} |", flush=True)


def tried(bench: Bench, seed: int) -> Tried:
    rng = np.random.default_rng(seed)
    kinds = predictors(bench)
    candidates = Candidates(bench.planning(None))
    counts = [c for c in notches(candidates.planning) if c >= 0.75 * bench.topology.expert_count]
    count = int(rng.choice(counts)) if seed % 2 else bench.topology.expert_count
    candidate = candidates.candidate(count, bench.topology.experts_used)
    limits = Limits({}, {})
    types = {}
    for name, choices in type_choices(candidates.planning, limits).items():
        known = [kind for kind in choices if kind in TYPES] or list(choices)
        types[name] = str(rng.choice(known))
    imatrix, kept = candidates.planning.imatrix, candidate.plan.pruning.kept
    table = ErrorTable(bench.checkpoint, kept, imatrix, bench.kernels, bench.threads, untold)
    errors = table.measure({n: (k,) for n, k in types.items()})
    plan = candidates.finish(candidate, types, errors)
    row = bench.built(f"random {seed}", "random", plan.bits_per_weight, str(count), plan)
    predicted = {"error alone": sum(errors[n][k] for n, k in types.items())}
    for kind, predictor in kinds.items():
        cost = sum(predictor.weights[n] * errors[n][k] for n, k in types.items())
        predicted[kind] = predictor.total(cost, count, candidate.used)
    print(
        f"{bench.model.name} plan {seed}: {count} experts, {row.bpw:.2f} bpw, measured {row.mean_kld:.4f}, "
        + ", ".join(f"{k} {predicted[k]:.4f}" for k in KINDS),
        flush=True,
    )
    return Tried(bench.model.name, seed, count, row.bpw, predicted, row.mean_kld)


def write(path: Path, rows: list[Tried]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "seed", "experts", "bpw", *KINDS, "measured"))
        for r in rows:
            writer.writerow((r.model, r.seed, r.expert_count, r.bpw, *(r.predicted[k] for k in KINDS), r.measured))


def plot(rows: list[Tried], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    models = list(dict.fromkeys(r.model for r in rows))
    figure, axes = plt.subplots(len(models), 3, figsize=(12, 3.8 * len(models)), squeeze=False)
    for line, model in zip(axes, models, strict=True):
        for axis, kind in zip(line, KINDS, strict=True):
            for pruned, colour, label in ((False, "#0072B2", "all experts"), (True, "#D55E00", "pruned")):
                some = [r for r in rows if r.model == model and (r.expert_count < max_count(rows, model)) == pruned]
                axis.scatter([r.predicted[kind] for r in some], [r.measured for r in some], c=colour, label=label, s=24)
            axis.set(xscale="log", yscale="log", xlabel=f"predicted: {kind}", title=model)
            axis.grid(True, which="both", alpha=0.25)
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(LogLocator(subs=(1, 2, 5)))
                side.set_major_formatter(FormatStrFormatter("%g"))
                side.set_minor_formatter(NullFormatter())
        line[0].set_ylabel("measured mean KL divergence (nats)")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def max_count(rows: list[Tried], model: str) -> int:
    return max(r.expert_count for r in rows if r.model == model)


if __name__ == "__main__":
    main()
