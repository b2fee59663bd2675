"""What repair leaves of the error of a type, on tokens that it did not see.

In units of what probes measure: of the error that the expert's output would have if every weight erred for itself,
with the relative error that the type has (method.md §6). The kernel alone makes more of it in gate and up, 1.8 to 4.2
times as much in the layers of deep-qwen3moe at Q2_K and IQ3_S: what it gives back is shorter than what it got, by 2 and
4 %, and so are all hidden values. `down` errs as if at random, 0.7 to 1.6 times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from collab_plugin.repair.feedback import Moments, fed_back
from collab_plugin.repair.fit_down import Goal, LayerFit, Taken, held_out
from collab_plugin.repair.routed_block import RoutedBlock, RoutedTokens
from collab_plugin.repair.samples import LayerSample

F32 = NDArray[np.float32]
MOST_HIDDEN, MOST_OUTPUTS = 512, 1024
"""Hidden values and outputs of an expert that are looked at, the first ones: enough for a ratio."""
MOST_TOKENS = 1024
LEAST_TOKENS = 16
"""Held-out tokens; fewer tell nothing."""
Round = Callable[[str, F32], F32]
"""(tensor, rows f32[r, n]) -> what the file gives back of them; fewer columns than the tensor has are its first."""
Importance = Callable[[str], F32 | None]
"""tensor -> importance of its columns that are looked at, f32[n]; None: all alike."""


class HeldOut:
    """The first hidden values and outputs of ``expert`` of a layer, and its tokens. ``choice``: of all experts.

    ``inputs`` f32[t, d], ``weights`` f32[t, 1] of the router, ``held`` bool[t]: not fitted to; ``matrices``
    f32[rows, n] by tensor, the first `MOST_HIDDEN` hidden values of each and `MOST_OUTPUTS` rows of ``down``;
    ``hidden`` f32[t, f]: what `down` multiplies, times the weights.
    """

    def __init__(self, block: RoutedBlock, sample: LayerSample, ctx: int, choice: RoutedTokens, expert: int) -> None:
        rows, weights = choice.by_expert(expert)
        some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_TOKENS)).astype(int)) if len(rows) else rows
        self.held = held_out(len(sample.inputs), ctx)[rows[some]]
        self.inputs, self.weights = np.asarray(sample.inputs[rows[some]]), weights[some, None]
        self.matrices = _first(block, expert)
        self.down, self.expert = block.down, expert
        self.block = self._holding(block, self.matrices)
        self.hidden = self.block.hidden(self.inputs, expert) * self.weights

    @property
    def enough(self) -> bool:
        """Whether it got tokens to fit to and tokens to tell by."""
        return int(self.held.sum()) >= LEAST_TOKENS <= int((~self.held).sum())

    def left_of_gate_and_up(self, rounded: Round, importance: Importance) -> float | None:
        """Squared error of its output that is left with feedback and a `down` that is fitted to them, over what random
        errors of gate and up as large as the kernel's would make; None where it makes none."""
        inputs = {name: values for name, values in self.matrices.items() if name != self.down}
        plain = {name: rounded(name, values) for name, values in inputs.items()}
        alone = self._random_in_gate_and_up(plain, importance)
        slopes = self.block.slopes(self.inputs[~self.held], self.expert)
        better = {}
        for name, values in inputs.items():
            moments = Moments.weighed(self.inputs[~self.held], slopes[name] * self.weights[~self.held])
            better[name] = rounded(name, fed_back(values, moments, partial(rounded, name)))
        missing, hidden = self._missing(better)
        with ThreadPoolExecutor(1) as pool:
            taken = {self.expert: Taken(np.arange(len(hidden)), hidden)}
            after = LayerFit(Goal((missing,), self.held, (1.0,)), taken, pool).repair.after
        return after / alone if alone > 0 else None

    def left_of_down(self, rounded: Round, importance: Importance) -> float | None:
        """The same share of what random errors of `down` would make, with feedback."""
        down = self.matrices[self.down]
        variances = _variances(down, rounded(self.down, down), importance(self.down))
        held = self.hidden[self.held]
        alone = float(variances.sum()) * _square(held)
        moments = Moments(self.hidden[~self.held])
        better = rounded(self.down, fed_back(down, moments, partial(rounded, self.down)))
        return _square(held @ (down - better).T) / alone if alone > 0 else None

    def _random_in_gate_and_up(self, rounded: Mapping[str, F32], importance: Importance) -> float:
        """Squared error of the outputs of held-out tokens, to first order."""
        inputs, lengths = self.inputs[self.held], np.square(self.matrices[self.down]).sum(0)
        moved = {n: np.square(s * self.weights[self.held]) for n, s in self.block.slopes(inputs, self.expert).items()}
        tokens = np.square(inputs).sum(1)
        found = 0.0
        for name, values in rounded.items():
            variances = _variances(self.matrices[name], values, importance(name))
            # A fused matrix has the rows of gate, then those of up.
            felt = variances * np.tile(lengths, len(variances) // len(lengths))
            found += float(tokens @ moved[name] @ felt)
        return found

    def _missing(self, quantized: Mapping[str, F32]) -> tuple[F32, F32]:
        """What outputs lack with gate and up ``quantized``, f32[t, d], and the hidden values that they give."""
        hidden = self._holding(self.block, quantized).hidden(self.inputs, self.expert) * self.weights
        return (self.hidden - hidden) @ self.matrices[self.down].T, hidden

    @staticmethod
    def _holding(block: RoutedBlock, matrices: Mapping[str, F32]) -> RoutedBlock:
        return block.reading(lambda name, expert: matrices[name])


def _first(block: RoutedBlock, expert: int) -> dict[str, F32]:
    """The expert's matrices, as if it had but `MOST_HIDDEN` hidden values and `MOST_OUTPUTS` outputs."""
    read, down = block.checkpoint.read, block.down
    columns = min(MOST_HIDDEN, block.checkpoint.tensors[down].shape[-1])
    found = {}
    for name in block.matrices:
        if name == down:
            found[name] = np.ascontiguousarray(read(name, expert=expert, rows=slice(0, MOST_OUTPUTS))[:, :columns])
        elif block.fused:
            half = block.checkpoint.tensors[name].shape[-2] // 2
            parts = [read(name, expert=expert, rows=slice(at, at + columns)) for at in (0, half)]
            found[name] = np.concatenate(parts)
        else:
            found[name] = read(name, expert=expert, rows=slice(0, columns))
    return found


def _variances(values: F32, rounded: F32, importance: F32 | None) -> F32:
    """Variance f32[r] of the weights of each row, if they erred at random, alike in a row, and in all as ``rounded``
    does: ε Σ_j w_j W_ij² / Σ_j w_j, with ε the plan's relative error."""
    w = np.ones(values.shape[1], np.float32) if importance is None else importance
    energy = np.square(values) @ w
    error = float((np.square(values - rounded) @ w).sum()) / max(float(energy.sum()), 1e-30)
    return np.asarray(error * energy / max(float(w.sum()), 1e-30), np.float32)


def _square(values: F32) -> float:
    return float(np.square(values, dtype=np.float64).sum())
