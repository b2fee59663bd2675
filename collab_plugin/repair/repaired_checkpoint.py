"""A checkpoint whose experts are what a plan's file should hold, so that it computes nearest what was sampled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock

from gguf import GGMLQuantizationType

from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint, TensorInfo
from collab_plugin.checkpoint.topology import Topology, topology_of
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.plans.plan import Plan
from collab_plugin.repair.fit_down import LayerRepair
from collab_plugin.repair.repaired_layer import RepairedLayer
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.routed_block import CHECKED_TOKENS, RoutedBlock
from collab_plugin.repair.samples import BlockSamples

LAYERS_AT_HAND = 2
"""Fitted layers that are kept: threads that read experts in order are in one, or in two at its end."""


class RepairedCheckpoint(Checkpoint):
    """``original`` with other kept experts in the layers of ``samples`` whose experts are dropped or quantized: their
    matrices are those of the plan's file, at its types.

    ``rounding``: how the file will hold them; None: gate and up as they are and down matrices as F32, fitted for
    dropped experts alone. A layer is fitted, by ``threads``, when the first of its down matrices is read. Raises
    CollabError where the layers are not of a kind that can be fitted, or compute something else than was sampled.
    """

    def __init__(
        self,
        original: Checkpoint,
        plan: Plan,
        samples: BlockSamples,
        rounding: Rounding | None = None,
        *,
        threads: int = 1,
    ) -> None:
        self.path, self.format, self.notes = original.path, original.format, original.notes
        self.metadata = original.metadata
        self._original, self._plan, self._samples, self._rounding = original, plan, samples, rounding
        self._threads = threads
        topology = topology_of(original)
        self._grouped = topology.groups > 1 and plan.pruning.group_policy != "disband"
        self._blocks = {
            layer: RoutedBlock(original, topology, layer)
            for layer in topology.moe_layers
            if layer in samples.layers and _changed(original, topology, plan, layer, rounding)
        }
        if first := next(iter(self._blocks.items()), None):
            first[1].check(samples.first(first[0], CHECKED_TOKENS))
        self._layer_of = {
            name: layer
            for layer, block in self._blocks.items()
            for name in block.matrices
            if name == block.down or (rounding is not None and rounding.quantizes(name))
        }
        self.tensors = {
            name: _at(info, "F32" if rounding is None else rounding.kind(name)) if name in self._layer_of else info
            for name, info in original.tensors.items()
        }
        self._at_hand: OrderedDict[int, RepairedLayer] = OrderedDict()
        self._lock = Lock()

    @property
    def repaired(self) -> Mapping[str, int]:
        """Layers by the names of the tensors that are repaired; what those of a layer need is worked out once."""
        return self._layer_of

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        if name not in self._layer_of or expert is None:
            return self._original.read(name, expert=expert, rows=rows)
        data = self.read_raw(name, expert=expert, rows=rows)
        return data.view("<f4") if self._rounding is None else self._rounding.given_back(name, data)

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        layer = self._layer_of.get(name)
        if layer is None:
            return self._original.read_raw(name, expert=expert, rows=rows)
        if expert is None:
            raise ValueError(f"{name} is repaired expert by expert")
        data = self._repaired(layer).stored(name, expert)
        return data if rows is None else data[rows]

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
        return self._repaired(layer).down.repair

    def _repaired(self, layer: int) -> RepairedLayer:
        with self._lock:
            if layer not in self._at_hand:
                sample, ctx = self._samples.layers[layer], self._samples.ctx
                sample.check(self._samples.path)
                self._at_hand[layer] = RepairedLayer(
                    self._blocks[layer],
                    sample,
                    ctx,
                    self._plan,
                    self._rounding,
                    grouped=self._grouped,
                    threads=self._threads,
                )
                if len(self._at_hand) > LAYERS_AT_HAND:
                    self._at_hand.popitem(last=False)
            return self._at_hand[layer]


def _at(info: TensorInfo, kind: str) -> TensorInfo:
    return replace(info, type=GGMLQuantizationType[kind], nbytes=tensor_bytes(kind, info.shape))


def _changed(checkpoint: Checkpoint, topology: Topology, plan: Plan, layer: int, rounding: Rounding | None) -> bool:
    """True when the layer loses experts, or its experts are quantized."""
    every = range(topology.expert_count)
    if len(plan.pruning.kept.get(layer, every)) < topology.expert_count or plan.activation.used < topology.experts_used:
        return True
    experts = (n for n, i in checkpoint.tensors.items() if i.by_expert and i.layer == layer and len(i.shape) == 3)
    return rounding is not None and any(rounding.quantizes(name) for name in experts)
