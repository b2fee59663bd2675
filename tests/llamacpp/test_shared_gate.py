"""Shared experts whose output is multiplied with a sigmoid (Qwen2-MoE): how large it is, and what errors cost there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.native.model import LoadedModel, read_tensor, tensor_at
from collab_llamacpp.native.observe import Observer
from engine_calls import CTX, calibrate

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.text_windows import text_cut
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.learned_weights import learned_weights
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.stats import Stats

MODEL = Path(__file__).parents[2] / "benchmarks" / "models" / "skewed-qwen2moe"


class GateObserver(Observer):
    """``squares[layer]``: what llama.cpp's graph calls the gate, squared, a value a token."""

    def __init__(self) -> None:
        super().__init__()
        self.squares: dict[int, list[float]] = {}

    def wanted(self, address: int) -> bool:
        return self._layer(address) is not None

    def take(self, address: int) -> bool:
        layer = self._layer(address)
        if layer is not None:
            self.squares.setdefault(layer, []).extend(np.square(read_tensor(address)).ravel().tolist())
        return True

    @staticmethod
    def _layer(address: int) -> int | None:
        found = re.fullmatch(rb"ffn_shexp_gate-(\d+)", tensor_at(address).name)
        return int(found[1]) if found else None


@pytest.fixture(scope="module")
def model() -> Path:
    return as_gguf(open_checkpoint(MODEL), 1)


@pytest.fixture(scope="module")
def stats(model: Path, prose: Path) -> Stats:
    return calibrate(model, prose)


def test_the_gate_is_what_the_graph_multiplies_with(model: Path, stats: Stats, prose: Path) -> None:
    seen = GateObserver()
    with LoadedModel(model, ctx=CTX, threads=1, callback=seen.callback) as session:
        windows = session.windows(text_cut(Windows((prose,), CTX, None), {}))
        for window in windows:
            session.decode_together([window.tolist()])  # of all tokens, in the last layer too
        session.logits(1)
    seen.finish()
    layers = topology_of(open_gguf(model)).moe_layers
    assert tuple(sorted(stats.shared_gates)) == layers
    for layer in layers:
        assert stats.shared_gates[layer] == pytest.approx(np.mean(seen.squares[layer]), rel=1e-3)
        assert 0 < stats.shared_gates[layer] < 1


def test_errors_of_gated_shared_experts_count_less(model: Path, stats: Stats) -> None:
    def weights(gates: Mapping[int, float]) -> Mapping[str, float]:
        given = dataclasses.replace(stats, shared_gates=gates)
        checkpoint = open_gguf(model)
        return learned_weights(checkpoint, topology_of(checkpoint), given, ImportanceMatrix.of(given, 0.0)).weights

    whole, gated = weights({}), weights({0: 0.25})
    for name, info in open_gguf(model).tensors.items():
        if name in whole:
            fewer = info.role == Role.SHARED_EXPERT and info.layer == 0
            assert gated[name] == pytest.approx(whole[name] * (0.25 if fewer else 1)), name


def test_a_shared_expert_without_a_gate_has_none(deepseek2: Path, prose: Path) -> None:
    assert calibrate(deepseek2, prose).shared_gates == {}
