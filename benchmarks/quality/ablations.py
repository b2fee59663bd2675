"""Ideas beyond the paper, measured before anything was built: what pruned models lose with each.

    python -m benchmarks.quality.ablations [MODEL ...] [--keep 75%] [--parts merging ...] [-o benchmarks/results]

Nothing is quantized but where bits are named. All experts kept are chosen by the criterion named; top-k stays as it
was, but in the part on it. Prints and writes ideas.csv: model, idea, mean KL divergence on the validation text; rows of
other runs stay.

- criteria: the paper's, REAP, REAP's sum ("mass"), sums of router weights, frequency.
- super experts: those whose mean output norm is two standard deviations above the layer's are kept.
- merging (REAM, arXiv 2604.04356, in short): dropped experts are averaged into the kept one with the
  most similar router row, weighted by router weight; with and without their neurons matched first; also at 1.5 bits.
- one expert a token more than before.
- router rescaling: rows of the kept experts times 0.9 and 1.1.
- borrowing: importance of the layer mixed into each expert's, after little calibration, at IQ2_XXS.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

import collab_plugin as cp
from benchmarks.quality.bench import Bench, trained_models
from collab_plugin.checkpoint.gguf import open_gguf, open_shard
from collab_plugin.planning.criteria.builtin_criteria import FREQ_SCORE
from collab_plugin.planning.criteria.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.plugins.manager import registry
from collab_plugin.stats.stats import LayerRouting

ROOT = Path(__file__).resolve().parents[2]
F64 = NDArray[np.float64]
SIDES = ("gate", "up", "down")
Measured = tuple[str, float, float]


def router_weight(routing: LayerRouting, options: CriterionOptions) -> F64:
    assert routing.weight_sum is not None
    share: F64 = routing.weight_sum / routing.weight_sum.max()
    return share


def super_experts(routing: LayerRouting, options: CriterionOptions) -> F64:
    """freq-score, with experts of outlying output norm first."""
    assert routing.reap_sum is not None
    assert routing.weight_sum is not None
    norm = routing.reap_sum / np.maximum(routing.weight_sum, 1e-9)
    scores = FREQ_SCORE.score(routing, CriterionOptions(FREQ_SCORE.values({}), options.layer))
    return np.where(norm > norm.mean() + 2 * norm.std(), 10.0, scores)


CRITERIA = (
    *(registry().criteria[name] for name in ("freq-score", "reap", "mass", "freq")),
    ImportanceCriterion("router weight", "", router_weight),
    ImportanceCriterion("super experts", "", super_experts),
)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--keep", default="75%")
    p.add_argument("--chunks", type=int, default=6)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    a = p.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    for model in a.models or trained_models():
        bench = Bench(model, a.work / model.name, a.chunks, a.threads)
        for part in a.parts:
            for idea, kld, stderr in PARTS[part](bench, a.keep):
                print(f"{model.name:18} {idea:54} {kld:.4f} ± {stderr:.4f}", flush=True)
                keep_row(a.output / "ideas.csv", (model.name, idea, f"{kld:.6g}", f"{stderr:.6g}"))


def keep_row(path: Path, row: tuple[str, str, str, str]) -> None:
    """In the place of the row of the same model and idea, or at the end."""
    with path.open(newline="") as file:
        head, *rows = (tuple(line) for line in csv.reader(file))
    at = [index for index, other in enumerate(rows) if other[:2] == row[:2]]
    rows[at[0] if at else len(rows) : at[0] + 1 if at else len(rows)] = [row]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((head, *rows))


def pruned(
    bench: Bench,
    checkpoint: cp.Checkpoint,
    keep: str,
    criterion: str | cp.ImportanceCriterion,
    *,
    more: int = 0,
    bits: float | None = None,
) -> cp.Plan:
    """``more``: experts a token beyond the model's own; ``bits`` None: types stay."""
    # Of no model in particular: the routers of some are changed on purpose.
    stats = dataclasses.replace(cp.read_stats(bench.stats), model_id=None)
    size: dict[str, Any] = (
        {} if bits is None else {"budget": f"{bits}bpw", "kernels": bench.kernels, "threads": bench.threads}
    )
    return cp.plan(checkpoint, stats=stats, criterion=criterion, keep=keep, keep_types=bits is None,
                   experts_used=bench.topology.experts_used + more, **size)  # fmt: skip


def measure(bench: Bench, checkpoint: cp.Checkpoint, plan: cp.Plan, idea: str) -> Measured:
    out = bench.work / "idea.gguf"
    stats = dataclasses.replace(cp.read_stats(bench.stats), model_id=None)
    cp.compress(checkpoint, plan, out, stats=stats, kernels=bench.kernels, threads=bench.threads)
    return evaluate(bench, out, idea)


def evaluate(bench: Bench, file: Path, idea: str) -> Measured:
    e = bench.evaluated(file)
    return idea, e.mean_kld, e.mean_kld_stderr


def criteria(bench: Bench, keep: str) -> Iterator[Measured]:
    for criterion in CRITERIA:
        plan = pruned(bench, bench.checkpoint, keep, criterion)
        yield measure(bench, bench.checkpoint, plan, f"keep {keep}, {criterion.name}")


# -- experts a token


def one_more(bench: Bench, keep: str) -> Iterator[Measured]:
    for more in (0, 1, 2):
        plan = pruned(bench, bench.checkpoint, keep, "mass", more=more)
        yield measure(bench, bench.checkpoint, plan, f"keep {keep}, mass, top-{plan.activation.used}")


# -- merging


LOW_BITS = 1.5


def merging(bench: Bench, keep: str) -> Iterator[Measured]:
    for matched in (None, False, True):
        checkpoint = bench.checkpoint if matched is None else open_gguf(merged(bench, keep, matched))
        told = {None: "", False: ", merged", True: ", merged with neurons matched"}[matched]
        for bits in (None, LOW_BITS):
            plan = pruned(bench, checkpoint, keep, "mass", bits=bits)
            at = "" if bits is None else f", {bits} bpw"
            yield measure(bench, checkpoint, plan, f"keep {keep}, mass{told}{at}")


def merged(bench: Bench, keep: str, matched: bool) -> Path:
    """A copy of the original in which kept experts hold the averages."""
    path = bench.work / "merged.gguf"
    shutil.copy(bench.original, path)
    header, _ = open_shard(bench.original)
    kept = pruned(bench, bench.checkpoint, keep, "mass").pruning.kept
    with path.open("r+b") as file:
        for layer, ids in kept.items():
            for side, values in averages(bench, layer, ids, matched).items():
                info = header.tensors[f"blk.{layer}.ffn_{side}_exps.weight"]
                size = info.nbytes // bench.topology.expert_count
                for expert, value in values.items():
                    file.seek(info.offset + expert * size)
                    file.write(bench.kernels.quantize(value, info.type.name).tobytes())
    return path


def averages(
    bench: Bench, layer: int, kept: tuple[int, ...], matched: bool
) -> dict[str, dict[int, NDArray[np.float32]]]:
    """Weights of the kept experts with the dropped averaged in: f32[rows, n] by side and expert."""
    t = bench.topology
    rows = bench.checkpoint.read(f"blk.{layer}.ffn_gate_inp.weight")
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mass = cp.read_stats(bench.stats).routing[layer].weight_sum
    assert mass is not None
    weights = {
        side: [bench.checkpoint.read(f"blk.{layer}.ffn_{side}_exps.weight", expert=e) for e in range(t.expert_count)]
        for side in SIDES
    }
    sums = {side: {e: weights[side][e] * mass[e] for e in kept} for side in SIDES}
    total = {e: float(mass[e]) for e in kept}
    for dropped in sorted(set(range(t.expert_count)) - set(kept)):
        near = [e for e in kept if e // t.experts_per_group == dropped // t.experts_per_group]
        target = near[int(np.argmax(rows[near] @ rows[dropped]))]
        order = neurons(weights, target, dropped) if matched else np.arange(len(weights["gate"][0]))
        for side in SIDES:
            value = weights[side][dropped]
            sums[side][target] = sums[side][target] + mass[dropped] * (
                value[:, order] if side == "down" else value[order]
            )
        total[target] += float(mass[dropped])
    return {side: {e: (s / total[e]).astype(np.float32) for e, s in sums[side].items()} for side in SIDES}


def neurons(weights: dict[str, list[NDArray[np.float32]]], target: int, other: int) -> NDArray[np.intp]:
    """The order of ``other``'s neurons that is most like ``target``'s."""

    def flat(e: int) -> NDArray[np.float32]:
        return np.concatenate([weights["gate"][e], weights["up"][e], weights["down"][e].T], axis=1)

    _, order = linear_sum_assignment(-(flat(target) @ flat(other).T))
    return order


# -- router rows


def rescaling(bench: Bench, keep: str) -> Iterator[Measured]:
    header, _ = open_shard(bench.original)
    for factor in (0.9, 1.1):
        path = bench.work / "rescaled.gguf"
        shutil.copy(bench.original, path)
        with path.open("r+b") as file:
            for layer in bench.topology.moe_layers:
                name = f"blk.{layer}.ffn_gate_inp.weight"
                info = header.tensors[name]
                values = np.float32(factor) * bench.checkpoint.read(name)
                file.seek(info.offset)
                file.write(bench.kernels.quantize(values, info.type.name).tobytes())
        checkpoint = open_gguf(path)
        plan = pruned(bench, checkpoint, keep, "mass")
        yield measure(bench, checkpoint, plan, f"keep {keep}, mass, router rows × {factor}")


# -- borrowing


def borrowing(bench: Bench, keep: str) -> Iterator[Measured]:
    for chunks, texts in ((1, bench.calibration[:1]), (1, bench.calibration), (8, bench.calibration)):
        stats = cp.calibrate(bench.original, texts=texts, chunks=chunks, threads=bench.threads)
        for borrow in (0.0, 1.0, 8.0, 32.0, 128.0):
            plan = cp.plan(
                bench.checkpoint, stats=stats, budget=10**12, allocator="uniform", keep="100%", types="IQ2_XXS",
                borrow=borrow, allow_few_tokens=True, kernels=bench.kernels, threads=bench.threads,
            )  # fmt: skip
            out = bench.work / "idea.gguf"
            cp.compress(bench.checkpoint, plan, out, stats=stats, kernels=bench.kernels, threads=bench.threads)
            yield evaluate(bench, out, f"IQ2_XXS after {stats.tokens} tokens, borrowing {borrow:g}")


PARTS: Mapping[str, Callable[[Bench, str], Iterator[Measured]]] = {
    "criteria": criteria,
    "experts-used": one_more,
    "merging": merging,
    "rescaling": rescaling,
    "borrowing": borrowing,
}


if __name__ == "__main__":
    main()
