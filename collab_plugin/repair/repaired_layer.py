"""The experts of one layer as a plan's file should hold them, from what was sampled of the layer."""

from __future__ import annotations

from functools import cached_property
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from collab_plugin.plans.plan import Plan
from collab_plugin.repair.feedback import MOST_TOKENS, Moments, fed_back
from collab_plugin.repair.fit_down import LayerRepair, Taken, fit_layer, taken_by
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import LayerSample

F32 = NDArray[np.float32]


class RepairedLayer:
    """``block`` as ``plan`` prunes and quantizes it.

    Gate and up get error feedback; `down` is fitted to what they give once quantized, and then gets feedback too.
    Without ``rounding`` nothing counts as quantized. Holds the hidden values of all sampled tokens, f32[k n, f].
    """

    def __init__(
        self, block: RoutedBlock, sample: LayerSample, ctx: int, plan: Plan, rounding: Rounding | None, *, grouped: bool
    ) -> None:
        self.block, self.ctx, self.rounding = block, ctx, rounding
        self.inputs, self.outputs = np.asarray(sample.inputs), np.asarray(sample.outputs)
        self.kept = tuple(sorted(plan.pruning.kept.get(block.layer, range(block.topology.expert_count))))
        self.choice = block.choose(self.inputs, self.kept, plan.activation.used, grouped=grouped)
        self._lock = Lock()

    @property
    def fit(self) -> LayerRepair:
        """What the down matrices change by, fitted when it is first asked for."""
        with self._lock:
            return self._fit

    def values(self, name: str, expert: int, rows: slice | None) -> F32:
        """Rows of the matrix ``name``, f32[r, n], to hand to the kernel."""
        values = self.block.checkpoint.read(name, expert=expert, rows=rows)
        if name != self.block.down:
            return self._fed_back(name, expert, values, rows)
        delta = self.fit.deltas.get(expert)
        if delta is not None:
            values = values + (delta if rows is None else delta[rows])
        return self._fed_back(name, expert, values, rows)

    def _fed_back(self, name: str, expert: int, values: F32, rows: slice | None) -> F32:
        rounding = self.rounding
        if rounding is None or not rounding.quantizes(name):
            return values
        moments = self._of_down(expert) if name == self.block.down else self._of_gate_or_up(name, expert, rows)
        if moments is None:
            return values
        return fed_back(values, moments, lambda target: rounding.rounded(name, expert, target))

    def _of_down(self, expert: int) -> Moments | None:
        taken = self._taken.get(expert)
        return None if taken is None else Moments(taken.hidden[_some(len(taken.rows))])

    def _of_gate_or_up(self, name: str, expert: int, rows: slice | None) -> Moments | None:
        tokens, weights = self.choice.by_expert(expert)
        if not len(tokens):
            return None
        some = _some(len(tokens))
        inputs = self.inputs[tokens[some]]
        slopes = self.block.slopes(inputs, expert)[name] * weights[some, None]
        costs = np.square(slopes if rows is None else slopes[:, rows]).T
        return Moments(inputs, costs / np.maximum(costs.mean(1, keepdims=True), np.float32(1e-30)))

    @cached_property
    def _fit(self) -> LayerRepair:
        return fit_layer(self.block, self.outputs, self.ctx, self._taken)

    @cached_property
    def _taken(self) -> dict[int, Taken]:
        block = self.block if self.rounding is None else self.block.reading(self._stored)
        return taken_by(block, self.inputs, self.kept, self.choice)

    def _stored(self, name: str, expert: int) -> F32:
        """Gate or up as the file gives it back."""
        assert self.rounding is not None
        return self.rounding.rounded(name, expert, self.values(name, expert, None))


def _some(count: int) -> NDArray[np.int64]:
    """At most `MOST_TOKENS` of ``count``, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_TOKENS)).astype(np.int64))
