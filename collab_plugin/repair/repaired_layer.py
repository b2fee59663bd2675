"""The experts of one layer as a plan's file should hold them, from what was sampled of the layer."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from collab_plugin.formats.ggml_types import row_bytes
from collab_plugin.plans.plan import Plan
from collab_plugin.quantize.kernels import Bytes
from collab_plugin.repair.feedback import MOST_TOKENS, Moments, fed_back
from collab_plugin.repair.fit_down import Goal, LayerFit, LayerRepair, Taken, pieces_of, taken_by
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import LayerSample

F32 = NDArray[np.float32]
ROW_VALUES = 2**22
"""Weights of gate and up that get feedback together."""


@dataclass(frozen=True)
class FittedDown:
    """The `down` matrices of a layer in the bytes of the file, uint8[d, bytes a row] by original id of the kept expert,
    and how they were fitted."""

    matrices: dict[int, Bytes]
    repair: LayerRepair


class RepairedLayer:
    """``block`` as ``plan`` prunes and quantizes it, in the bytes of the file.

    Gate and up get error feedback; `down` is fitted to what they give once quantized, and then gets feedback too.
    Without ``rounding`` nothing counts as quantized: gate and up stay, `down` is F32. Nothing is worked out twice.

    ``threads`` work; each piece is one thread's, and cut alike whatever their number, so that the bytes are. Until
    `down` is fitted, memory holds the ``sample``; while it is, also the hidden values of all sampled tokens,
    f32[k n, f], and what `LayerFit` says; then only the bytes of the file.
    """

    def __init__(
        self,
        block: RoutedBlock,
        sample: LayerSample,
        ctx: int,
        plan: Plan,
        rounding: Rounding | None,
        *,
        grouped: bool,
        threads: int,
    ) -> None:
        self.block, self.ctx, self.rounding, self.threads = block, ctx, rounding, threads
        self.kept = tuple(sorted(plan.pruning.kept.get(block.layer, range(block.topology.expert_count))))
        self.upper = tuple(name for name in block.matrices[:-1] if rounding is not None and rounding.quantizes(name))
        self.choice = block.choose(sample.inputs, self.kept, plan.activation.used, grouped=grouped)
        self._sample: LayerSample | None = sample
        self._made: dict[int, Future[dict[str, Bytes]]] = {}
        self._fitted: FittedDown | None = None
        self._looking, self._fitting = Lock(), Lock()

    @property
    def down(self) -> FittedDown:
        """`down`, fitted when it is first asked for."""
        with self._fitting:
            if self._fitted is None:
                self._fitted = self._fit()
            return self._fitted

    def stored(self, name: str, expert: int) -> Bytes:
        """One of the `upper` matrices, or `down`, of a kept expert as the file holds it, uint8[rows, bytes a row]."""
        if name == self.block.down:
            return self.down.matrices[expert]
        return self._upper_of(expert)[name]

    def _upper_of(self, expert: int) -> dict[str, Bytes]:
        """Its `upper` matrices, made by the first thread that asks."""
        with self._looking:
            known = self._made.get(expert)
            made = self._made.setdefault(expert, Future())
        if known is None:
            try:
                made.set_result(self._upper(expert))
            except BaseException as error:
                made.set_exception(error)
                raise
        return made.result()

    def _upper(self, expert: int) -> dict[str, Bytes]:
        tokens, weights = self.choice.by_expert(expert)
        read, rounding = self.block.checkpoint.read, self._rounding
        if not len(tokens):
            return {name: rounding.stored(name, expert, read(name, expert=expert)) for name in self.upper}
        some = _some(len(tokens))
        inputs = self._sampled.inputs[tokens[some]]
        slopes = self.block.slopes(inputs, expert)
        return {name: self._with_costs(name, expert, inputs, slopes[name] * weights[some, None]) for name in self.upper}

    def _with_costs(self, name: str, expert: int, inputs: F32, slopes: F32) -> Bytes:
        """Gate or up with feedback from ``inputs`` f32[t, d], whose outputs count as ``slopes`` f32[t, rows] says."""
        step = max(1, ROW_VALUES // inputs.shape[1])
        made = []
        for start in range(0, slopes.shape[1], step):
            rows = slice(start, min(start + step, slopes.shape[1]))
            moments = Moments.weighed(inputs, slopes[:, rows])
            values = self.block.checkpoint.read(name, expert=expert, rows=rows)
            made.append(self._fed_back(name, expert, values, moments))
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _fed_back(self, name: str, expert: int, values: F32, moments: Moments) -> Bytes:
        rounding = self._rounding
        target = fed_back(values, moments, lambda rows: rounding.rounded(name, expert, rows))
        return rounding.stored(name, expert, target)

    def _fit(self) -> FittedDown:
        block, columns = self.block, self._sampled.outputs.shape[1]
        width = row_bytes("F32" if self.rounding is None else self.rounding.kind(block.down), self._hidden_values)
        with ThreadPoolExecutor(self.threads) as pool:
            if self.upper:
                list(pool.map(self._upper_of, self.kept))
            seen = block if self.rounding is None else block.reading(self._given_back)
            taken = taken_by(seen, self._sampled.inputs, self.kept, self.choice, pool)
            fit = LayerFit(Goal.of(block, self._last_outputs(), self.ctx, taken, pool), taken, pool)
            found = {expert: np.empty((columns, width), np.uint8) for expert in self.kept}

            def one(numbered: tuple[int, slice]) -> None:
                number, rows = numbered
                deltas = fit.deltas(number)
                for expert, into in found.items():
                    into[rows] = self._rows_of_down(expert, rows, deltas.pop(expert, None), taken.get(expert))

            list(pool.map(one, enumerate(pieces_of(columns))))
        return FittedDown(found, fit.repair)

    def _last_outputs(self) -> F32:
        """The sampled outputs, handed over: nothing asks for the sample any more."""
        outputs, self._sample = self._sampled.outputs, None
        return outputs

    def _rows_of_down(self, expert: int, rows: slice, delta: F32 | None, taken: Taken | None) -> Bytes:
        name, rounding = self.block.down, self.rounding
        values = self.block.checkpoint.read(name, expert=expert, rows=rows)
        if delta is not None:
            values = values + delta
        if rounding is None:
            return np.ascontiguousarray(values).view(np.uint8)
        if taken is None or not rounding.quantizes(name):
            return rounding.stored(name, expert, values)
        return self._fed_back(name, expert, values, Moments(taken.hidden[_some(len(taken.rows))]))

    def _given_back(self, name: str, expert: int) -> F32:
        """Gate or up as the file gives it back."""
        rounding = self._rounding
        if name in self.upper:
            return rounding.given_back(name, self._upper_of(expert)[name])
        return rounding.rounded(name, expert, self.block.checkpoint.read(name, expert=expert))

    @property
    def _hidden_values(self) -> int:
        return self.block.checkpoint.tensors[self.block.down].shape[-1]

    @property
    def _sampled(self) -> LayerSample:
        assert self._sample is not None  # asked for before `down` is fitted alone
        return self._sample

    @property
    def _rounding(self) -> Rounding:
        assert self.rounding is not None
        return self.rounding


def _some(count: int) -> NDArray[np.int64]:
    """At most `MOST_TOKENS` of ``count``, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_TOKENS)).astype(np.int64))
