"""Error feedback into ggml's own types: a trial, not part of `compress`.

    python -m benchmarks.quality.feedback [--types IQ2_XXS ...] [-o benchmarks/results]

A row w of an expert's gate matrix, quantized to q, errs by (w − q) H (w − q)ᵀ in the layer's output, with H the second
moments of what goes in; ggml's kernels know the diagonal of H alone. Here the kernel is given other targets than w:
what the error of a column does through H is asked back from the others, and a row takes the result where its error
falls. The format does not change. H is of four fifths of the sampled tokens of the layer; the last fifth judges.
Writes feedback.csv: of each model and type the error after over before, a mean over two experts of the last two layers.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

from benchmarks.quality.bench import ROOT, Bench
from collab_plugin.repair.samples import read_samples

F64 = NDArray[np.float64]
MODELS = ("tiny-qwen3moe", "tiny-deepseek-v3")
TYPES = ("IQ2_XXS", "Q3_K", "IQ3_S", "IQ4_XS")
STEPS = (0.1, 0.2, 0.3, 0.5, 0.7)
ROUNDS = 6
EXPERTS = (0, 5)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--types", nargs="+", default=TYPES)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with (a.output / "feedback.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "type", "calibrated", "held_out"))
        for model in MODELS:
            bench = Bench(ROOT / "tests" / "models" / model, a.work / model, chunks=4, threads=1)
            for kind in a.types:
                row = (model, kind, *(f"{v:.3f}" for v in ratios(bench, kind)))
                writer.writerow(row)
                print(*row, flush=True)


def ratios(bench: Bench, kind: str) -> F64:
    """Error with feedback over error without, on the tokens of H and on others: f64[2]."""
    kernels, found = GgmlKernels(), []
    layers = read_samples(bench.samples).layers
    for layer in list(layers)[-2:]:
        inputs = np.asarray(layers[layer].inputs, np.float64)
        cut = len(inputs) * 4 // 5
        seen, held = (part.T @ part / len(part) for part in (inputs[:cut], inputs[cut:]))
        importance = np.diag(seen).astype(np.float32)
        for expert in EXPERTS:
            weights = bench.checkpoint.read(f"blk.{layer}.ffn_gate_exps.weight", expert=expert).astype(np.float64)

            def rounded(target: F64, vector: NDArray[np.float32] = importance) -> F64:
                data = kernels.quantize(target.astype(np.float32), kind, vector)
                return kernels.dequantize(data, kind, target.shape[1]).astype(np.float64)

            plain, better = rounded(weights), fed_back(weights, seen, rounded)
            found.append([errors(weights, better, h).sum() / errors(weights, plain, h).sum() for h in (seen, held)])
    return np.asarray(np.mean(found, 0), np.float64)


def fed_back(weights: F64, moments: F64, rounded: Callable[[F64], F64]) -> F64:
    """The quantized rows f64[r, n] of least error that `STEPS` and `ROUNDS` find, ``moments`` f64[n, n]."""
    best = rounded(weights)
    least = errors(weights, best, moments)
    for step in STEPS:
        for _ in range(ROUNDS):
            rest = weights - best
            tried = rounded(weights + step * (rest @ moments / np.diag(moments) - rest))
            error = errors(weights, tried, moments)
            won = error < least
            best[won], least[won] = tried[won], error[won]
    return best


def errors(weights: F64, quantized: F64, moments: F64) -> F64:
    """Squared error of each row's output, a mean over tokens: f64[r]."""
    rest = weights - quantized
    return np.asarray(((rest @ moments) * rest).sum(1))


if __name__ == "__main__":
    main()
