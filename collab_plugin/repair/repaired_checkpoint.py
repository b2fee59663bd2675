"""A checkpoint whose kept experts do the work of the dropped ones too."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
from gguf import GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.plans.plan import Plan
from collab_plugin.repair.fit_down import LayerRepair, fit_layer
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import BlockSamples
from collab_plugin.repair.stored_experts import ReadExpert

LAYERS_AT_HAND = 2
"""Fitted layers that are kept: threads that read experts in order are in one, or in two at its end."""


class RepairedCheckpoint(Checkpoint):
    """``original`` with new down matrices, as F32, in the layers of ``samples`` whose experts are dropped or quantized.

    ``stored``: gate and up as the file will hold them, whose errors the fit then makes up for; None: as they are, and
    layers are fitted for dropped experts alone. A layer is fitted when the first of its matrices is read. Raises
    CollabError where the layers are not of a kind that can be fitted, or compute something else than was sampled.
    """

    def __init__(
        self, original: Checkpoint, plan: Plan, samples: BlockSamples, stored: ReadExpert | None = None
    ) -> None:
        self.path, self.format, self.notes = original.path, original.format, original.notes
        self.metadata = original.metadata
        self._original, self._plan, self._samples = original, plan, samples
        topology = topology_of(original)
        self._grouped = topology.groups > 1 and plan.pruning.group_policy != "disband"
        self._blocks = {
            layer: RoutedBlock(original, topology, layer)
            for layer, kept in plan.pruning.kept.items()
            if layer in samples.layers
            and (
                len(kept) < topology.expert_count
                or plan.activation.used < topology.experts_used
                or (stored is not None and _requantized(original, plan, layer))
            )
        }
        if first := next(iter(self._blocks.items()), None):
            first[1].check(samples.layers[first[0]])
        if stored is not None:
            self._blocks = {layer: block.reading(stored) for layer, block in self._blocks.items()}
        self._down = {block.down: layer for layer, block in self._blocks.items()}
        self.tensors = {
            name: replace(info, type=GGMLQuantizationType.F32, nbytes=4 * info.n_elements)
            if name in self._down
            else info
            for name, info in original.tensors.items()
        }
        self._fitted: OrderedDict[int, LayerRepair] = OrderedDict()
        self._lock = Lock()

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        values = self._original.read(name, expert=expert, rows=rows)
        layer = self._down.get(name)
        if layer is None or expert is None:
            return values
        delta = self.repair(layer).deltas.get(expert)
        return values if delta is None else values + (delta if rows is None else delta[rows])

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        if name not in self._down:
            return self._original.read_raw(name, expert=expert, rows=rows)
        return np.ascontiguousarray(self.read(name, expert=expert, rows=rows)).view(np.uint8)

    def by_rows(self, name: str) -> bool:
        return self._original.by_rows(name)

    @property
    def address(self) -> str:
        return self._original.address

    def local(self) -> Path:
        return self._original.local()

    def check_conversion(self) -> None:
        self._original.check_conversion()

    def repair(self, layer: int) -> LayerRepair:
        """The fit of one of the repaired layers."""
        with self._lock:
            if layer not in self._fitted:
                block, sample, plan = self._blocks[layer], self._samples.layers[layer], self._plan
                kept = tuple(sorted(plan.pruning.kept[layer]))
                choice = block.choose(np.asarray(sample.inputs), kept, plan.activation.used, grouped=self._grouped)
                self._fitted[layer] = fit_layer(block, sample, self._samples.ctx, kept, choice)
                if len(self._fitted) > LAYERS_AT_HAND:
                    self._fitted.popitem(last=False)
            return self._fitted[layer]


def _requantized(checkpoint: Checkpoint, plan: Plan, layer: int) -> bool:
    """True when what the experts' down matrices multiply is no longer exact."""
    return any(
        info.by_expert and info.layer == layer and plan.tensors[name].type not in ("F32", info.type.name)
        for name, info in checkpoint.tensors.items()
        if len(info.shape) == 3 and "_down_exps" not in name
    )
