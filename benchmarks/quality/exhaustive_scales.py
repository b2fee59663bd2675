"""How much a search over all scales would gain over ggml's kernels at IQ4_NL and Q3_K: a bound, nothing that is built.

    python -m benchmarks.quality.exhaustive_scales [MODEL ...] [-o benchmarks/results]

A block's levels are fixed once its scale is, so the least error of a block is that of the best scale; ggml's kernels
try some scales, this tries enough that more change nothing. IQ4_NL has a scale for 32 weights; Q3_K one of 6 bits for
16, times one for 256. Both minimise Σ w (x − q)² with ggml's own weights w, the importance times √(σ² + x²), and what
is compared is the importance-weighted error that plans count (method.md §5). Rows of two experts of every layer. Prints
and writes exhaustive_scales.csv: error with the search over error of the kernel.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

from benchmarks.quality.bench import ROOT, Bench, trained_models
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector
from collab_plugin.stats.stats_file import read_stats

F32 = NDArray[np.float32]
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
LARGEST = 8
"""Weights of a block that each level is tried on for a scale of IQ4_NL."""
STEPS = 64
"""Scales tried for each sign and 16 weights of Q3_K."""
EXPERTS = (0, 5)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with (a.output / "exhaustive_scales.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "type", "ratio"))
        for model in a.models or trained_models():
            bench = Bench(model, a.work / model.name, chunks=4, threads=1)
            for kind, (block, search) in SEARCHES.items():
                row = (model.name, kind, f"{ratio(bench, kind, block, search):.3f}")
                writer.writerow(row)
                print(*row, flush=True)


def ratio(bench: Bench, kind: str, block: int, search: Callable[[F32, F32], F32]) -> float:
    """Importance-weighted squared error with ``search`` over that of ggml's kernel."""
    kernels, imatrix = GgmlKernels(), ImportanceMatrix.of(read_stats(bench.stats), 0.0)
    found = np.zeros(2)
    for name, info in bench.checkpoint.tensors.items():
        if not info.by_expert or len(info.shape) != 3:
            continue
        for expert in EXPERTS:
            vector = importance_vector(info, expert, kind, imatrix)
            if vector is None:
                continue
            values = bench.checkpoint.read(name, expert=expert)
            width = values.shape[1]
            wide = width if block == 32 else 256
            size = 2 * np.square(values.reshape(-1, wide)).mean(1, keepdims=True).repeat(wide, 1).reshape(values.shape)
            weights = np.asarray(vector * np.sqrt(size + np.square(values)), np.float32)
            plain = kernels.dequantize(kernels.quantize(values, kind, vector), kind, width)
            best = search(values.reshape(-1, block), weights.reshape(-1, block)).reshape(values.shape)
            found += [float((np.square(values - q, dtype=np.float64) @ vector).sum()) for q in (best, plain)]
    return float(found[0] / found[1])


def iq4_nl(values: F32, weights: F32) -> F32:
    """``values`` and ``weights`` f32[b, 32]; the best of the scales that put a large weight on a level exactly."""
    middles = (IQ4[1:] + IQ4[:-1]) / 2
    best, scale = np.full(len(values), -1.0), np.zeros(len(values), np.float32)
    order = np.argsort(-np.abs(values), 1)[:, :LARGEST]
    for column in order.T:
        large = np.take_along_axis(values, column[:, None], 1)
        for level in IQ4:
            tried = large / level
            levels = IQ4[np.searchsorted(middles, values / np.where(tried == 0, 1, tried))]
            _take_better(values, weights, levels, best, scale)
    held = _nonzero(scale.astype(np.float16).astype(np.float32)[:, None])
    return np.asarray(held * IQ4[np.searchsorted(middles, values / held)], np.float32)


def q3_k(values: F32, weights: F32) -> F32:
    """``values`` and ``weights`` f32[b, 256]."""
    x, w = values.reshape(-1, 16, 16), weights.reshape(-1, 16, 16)
    small = _best_scales(x.reshape(-1, 16), w.reshape(-1, 16)).reshape(-1, 16)
    largest = np.take_along_axis(small, np.abs(small).argmax(1)[:, None], 1)
    best, error = np.zeros_like(x), np.full(len(x), np.inf)
    for divisor in np.concatenate([np.linspace(24, 32, 17), -np.linspace(24, 32, 17)]):
        whole = _nonzero((largest / divisor).astype(np.float16).astype(np.float32))
        found, lost = np.zeros_like(x), np.full(small.shape, np.inf)
        for beside in (-1, 0, 1):
            step = _nonzero((whole * np.clip(np.rint(small / whole) + beside, -32, 31))[:, :, None])
            tried = step * np.clip(np.rint(x / step), -4, 3)
            here = (w * np.square(x - tried)).sum(2)
            won = here < lost
            lost[won], found[won] = here[won], tried[won]
        won = lost.sum(1) < error
        error[won], best[won] = lost.sum(1)[won], found[won]
    return best.reshape(values.shape)


def _best_scales(values: F32, weights: F32) -> F32:
    """Of 16 weights at levels from -4 to 3, f32[b]."""
    best, scale = np.full(len(values), -1.0), np.zeros(len(values), np.float32)
    largest = _nonzero(np.abs(values).max(1, keepdims=True))
    for level in (*np.linspace(1.5, 5.5, STEPS), *-np.linspace(1.5, 5.5, STEPS)):
        _take_better(values, weights, np.clip(np.rint(values / largest * level), -4, 3), best, scale)
    return scale


def _take_better(values: F32, weights: F32, levels: F32, best: NDArray[np.float64], scale: F32) -> None:
    """Least squares for the scale of ``levels``; kept where ``best``, what the error falls by, is less."""
    both, own = (weights * values * levels).sum(1), (weights * levels * levels).sum(1)
    gain = np.where(own > 0, both**2 / np.maximum(own, 1e-30), -1)
    won = gain > best
    best[won], scale[won] = gain[won], (both / np.maximum(own, 1e-30))[won]


def _nonzero(values: F32) -> F32:
    return np.asarray(np.where(values == 0, 1e-30, values), np.float32)


SEARCHES: dict[str, tuple[int, Callable[[F32, F32], F32]]] = {"IQ4_NL": (32, iq4_nl), "Q3_K": (256, q3_k)}


if __name__ == "__main__":
    main()
