"""What error feedback leaves of a layer's error, by type and by how many tokens an expert was sampled with.

    python -m benchmarks.quality.feedback [MODEL ...] [--types IQ2_XXS ...] [--tokens 64 ...] [-o benchmarks/results]

Two experts of the second layer with experts are quantized, gate and up or `down`, with and without feedback from
some tokens of the calibration texts; the squared error of what they give, times router weights, is taken over tokens of
other windows. Prints and writes feedback.csv: error with feedback over error without.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.bench import ROOT, Bench, trained_models
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.repair.feedback import Moments, fed_back
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import read_samples
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector
from collab_plugin.stats.stats_file import read_stats

F32 = NDArray[np.float32]
TYPES = ("IQ1_S", "IQ2_XXS", "Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K")
TOKENS = (64, 256, 1024)
EXPERTS = 2
COLUMNS = ("model", "type", "tokens", "gate_and_up", "down")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path)
    p.add_argument("--types", nargs="+", default=TYPES)
    p.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    with (a.output / "feedback.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for model in a.models or trained_models():
            layer = SampledLayer(Bench(model, a.work / model.name, chunks=4, threads=1))
            for kind in a.types:
                for tokens, of_gate_and_up, of_down in layer.rows(kind, a.tokens):
                    row = (model.name, kind, tokens, f"{of_gate_and_up:.3f}", f"{of_down:.3f}")
                    writer.writerow(row)
                    file.flush()
                    print(*row, flush=True)


class SampledLayer:
    """The second layer with experts of a model, and what was sampled of it."""

    def __init__(self, bench: Bench) -> None:
        samples = read_samples(bench.samples)
        self.checkpoint, self.kernels, topology = bench.checkpoint, bench.kernels, topology_of(bench.checkpoint)
        layer = list(samples.layers)[1]
        self.block = RoutedBlock(bench.checkpoint, topology, layer)
        self.inputs = np.asarray(samples.layers[layer].inputs)
        self.held = np.arange(len(self.inputs)) // samples.ctx % 5 == 4
        every = tuple(range(topology.expert_count))
        self.choice = self.block.choose(self.inputs, every, topology.experts_used, grouped=topology.groups > 1)
        self.imatrix = ImportanceMatrix.of(read_stats(bench.stats), 0.0)
        self.experts = np.argsort(-np.bincount(self.choice.ids.reshape(-1)), kind="stable")[:EXPERTS]

    def rows(self, kind: str, counts: Sequence[int]) -> Iterator[tuple[int, float, float]]:
        """Tokens, and what is left with gate and up and with `down` quantized."""
        for count in counts:
            before, after = np.zeros(2), np.zeros(2)
            for expert in self.experts:
                plain, better = self._expert(kind, int(expert), count)
                before += plain
                after += better
            yield count, *(after / before)

    def _expert(self, kind: str, expert: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows, weights = self.choice.by_expert(expert)
        held = self.held[rows]
        seen = np.nonzero(~held)[0]
        seen = seen[np.linspace(0, len(seen) - 1, count).astype(int)]
        inputs, scale = self.inputs[rows[seen]], weights[seen, None]
        gate, up, down = names = self.block.matrices
        matrices = {name: self.checkpoint.read(name, expert=expert) for name in names}
        slopes = self.block.slopes(inputs, expert)
        moments = {name: Moments(inputs, np.square(slopes[name] * scale).T) for name in (gate, up)}
        moments[down] = Moments(self.block.hidden(inputs, expert) * scale)
        round_ = {name: self._rounding(name, expert, kind) for name in names}
        plain = {name: round_[name](matrices[name]) for name in names}
        better = {n: round_[n](fed_back(matrices[n], moments[n], round_[n])) for n in names}
        tokens, scale = self.inputs[rows[held]], weights[held, None]

        def lost(quantized: dict[str, F32]) -> float:
            difference = scale * (_output(tokens, matrices | quantized, names) - _output(tokens, matrices, names))
            return float(np.square(difference, dtype=np.float64).sum())

        both = [(lost({gate: m[gate], up: m[up]}), lost({down: m[down]})) for m in (plain, better)]
        return np.array(both[0]), np.array(both[1])

    def _rounding(self, name: str, expert: int, kind: str) -> Callable[[F32], F32]:
        vector = importance_vector(self.checkpoint.tensors[name], expert, kind, self.imatrix)

        def rounded(values: F32) -> F32:
            return self.kernels.dequantize(self.kernels.quantize(values, kind, vector), kind, values.shape[1])

        return rounded


def _output(inputs: F32, matrices: dict[str, F32], names: Sequence[str]) -> F32:
    gate, up, down = (matrices[name] for name in names)
    gated = inputs @ gate.T
    return np.asarray((gated / (1 + np.exp(-gated)) * (inputs @ up.T)) @ down.T)


if __name__ == "__main__":
    main()
