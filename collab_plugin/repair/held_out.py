"""What repair leaves of the error of a type, on tokens that it did not see."""

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

    def left_of_gate_and_up(self, rounded: Round) -> float | None:
        """Share of the squared error of its output, that the kernel alone makes of gate and up, which is left with
        feedback and a `down` that is fitted to them; None where it makes none."""
        inputs = {name: values for name, values in self.matrices.items() if name != self.down}
        plain = self._missing({n: rounded(n, v) for n, v in inputs.items()})[0]
        alone = _square(plain[self.held])
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

    def left_of_down(self, rounded: Round) -> float | None:
        """The same share of what the kernel makes of `down`, with feedback."""
        down = self.matrices[self.down]
        moments = Moments(self.hidden[~self.held])
        better = rounded(self.down, fed_back(down, moments, partial(rounded, self.down)))
        held = self.hidden[self.held]
        alone, after = (_square(held @ (down - q).T) for q in (rounded(self.down, down), better))
        return after / alone if alone > 0 else None

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


def _square(values: F32) -> float:
    return float(np.square(values, dtype=np.float64).sum())
