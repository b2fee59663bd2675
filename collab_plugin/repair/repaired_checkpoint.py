"""A checkpoint whose experts are what a plan's file should hold, so that it computes nearest what was sampled."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
from gguf import GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint
from collab_plugin.checkpoint.topology import Topology, topology_of
from collab_plugin.plans.plan import Plan
from collab_plugin.repair.fit_down import LayerRepair
from collab_plugin.repair.repaired_layer import RepairedLayer
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import BlockSamples

LAYERS_AT_HAND = 2
"""Fitted layers that are kept: threads that read experts in order are in one, or in two at its end."""


class RepairedCheckpoint(Checkpoint):
    """``original`` with other experts in the layers of ``samples`` whose experts are dropped or quantized: new down
    matrices, as F32, and targets for the kernel of gate and up.

    ``rounding``: how the file will hold them; None: as they are, and layers are fitted for dropped experts alone. A
    layer is fitted when the first of its down matrices is read. Raises CollabError where the layers are not of a kind
    that can be fitted, or compute something else than was sampled.
    """

    def __init__(
        self, original: Checkpoint, plan: Plan, samples: BlockSamples, rounding: Rounding | None = None
    ) -> None:
        self.path, self.format, self.notes = original.path, original.format, original.notes
        self.metadata = original.metadata
        self._original, self._plan, self._samples, self._rounding = original, plan, samples, rounding
        topology = topology_of(original)
        self._grouped = topology.groups > 1 and plan.pruning.group_policy != "disband"
        self._blocks = {
            layer: RoutedBlock(original, topology, layer)
            for layer in topology.moe_layers
            if layer in samples.layers and _changed(original, topology, plan, layer, rounding)
        }
        if first := next(iter(self._blocks.items()), None):
            first[1].check(samples.layers[first[0]])
        self._layer_of = {name: layer for layer, block in self._blocks.items() for name in block.matrices}
        self._down = {block.down for block in self._blocks.values()}
        self.tensors = {
            name: replace(info, type=GGMLQuantizationType.F32, nbytes=4 * info.n_elements)
            if name in self._down
            else info
            for name, info in original.tensors.items()
        }
        self._at_hand: OrderedDict[int, RepairedLayer] = OrderedDict()
        self._lock = Lock()

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        layer = self._layer_of.get(name)
        if layer is None or expert is None:
            return self._original.read(name, expert=expert, rows=rows)
        return self._repaired(layer).values(name, expert, rows)

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        if name not in self._down:
            return self._original.read_raw(name, expert=expert, rows=rows)
        return np.ascontiguousarray(self.read(name, expert=expert, rows=rows)).view(np.uint8)

    def by_rows(self, name: str) -> bool:
        return name not in self._layer_of and self._original.by_rows(name)

    @property
    def address(self) -> str:
        return self._original.address

    def local(self) -> Path:
        return self._original.local()

    def check_conversion(self) -> None:
        self._original.check_conversion()

    def repair(self, layer: int) -> LayerRepair:
        """The fit of one of the repaired layers."""
        return self._repaired(layer).fit

    def _repaired(self, layer: int) -> RepairedLayer:
        with self._lock:
            if layer not in self._at_hand:
                sample, ctx = self._samples.layers[layer], self._samples.ctx
                sample.check(self._samples.path)
                self._at_hand[layer] = RepairedLayer(
                    self._blocks[layer], sample, ctx, self._plan, self._rounding, grouped=self._grouped
                )
                if len(self._at_hand) > LAYERS_AT_HAND:
                    self._at_hand.popitem(last=False)
            return self._at_hand[layer]


def _changed(checkpoint: Checkpoint, topology: Topology, plan: Plan, layer: int, rounding: Rounding | None) -> bool:
    """True when the layer loses experts, or its experts are quantized."""
    every = range(topology.expert_count)
    if len(plan.pruning.kept.get(layer, every)) < topology.expert_count or plan.activation.used < topology.experts_used:
        return True
    experts = (n for n, i in checkpoint.tensors.items() if i.by_expert and i.layer == layer and len(i.shape) == 3)
    return rounding is not None and any(rounding.quantizes(name) for name in experts)
