"""A repaired layer: the same bytes with any number of threads, nothing worked out twice, memory within its bound."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray
from small_models import one_layer_memory
from small_models.hand_made_plans import pruned, typed_plan

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.compression.gguf_file import compress
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import untold
from collab_plugin.repair import fit_down, repaired_layer, routed_block
from collab_plugin.repair.feedback import STEPS
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import BlockSamples, LayerSample

KEPT, CTX, TOKENS = (0, 1, 3), 32, 480
F32, Bytes = NDArray[np.float32], NDArray[np.uint8]
pytestmark = pytest.mark.native


def samples_of(model: Path) -> BlockSamples:
    """What every expert gives for random tokens, in all layers."""
    checkpoint = open_gguf(model)
    topology = topology_of(checkpoint)
    layers = {}
    for layer in topology.moe_layers:
        block, random = RoutedBlock(checkpoint, topology, layer), np.random.default_rng(layer)
        inputs = (random.standard_normal((TOKENS, 24)) @ random.standard_normal((24, 256)) / 5).astype(np.float32)
        choice = block.choose(inputs, tuple(range(topology.expert_count)), topology.experts_used, grouped=False)
        layers[layer] = LayerSample(inputs, block.outputs(inputs, choice))
    return BlockSamples(model, "", CTX, TOKENS, layers)


def quantizing(model: Path) -> Plan:
    checkpoint = open_gguf(model)
    return pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q2_K" if info.by_expert else "F32"), KEPT)


class Counting(GgmlKernels):
    """ggml's kernels, which count the rows that they quantize by the width of the matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Counter[str] = Counter()

    def quantize(self, values: F32, type_name: str, imatrix: F32 | None = None) -> Bytes:
        self.rows[type_name] += len(values)
        return super().quantize(values, type_name, imatrix)


def written(model: Path, samples: BlockSamples, out: Path, threads: int, kernels: GgmlKernels) -> bytes:
    checkpoint = open_gguf(model)
    compress(checkpoint, quantizing(model), None, out, kernels=kernels, threads=threads, report=untold, samples=samples)
    return out.read_bytes()


@pytest.mark.parametrize("cut", [False, True])
def test_bytes_do_not_depend_on_the_number_of_threads(
    qwen3moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """Cut: into pieces of columns, rows and tokens, as wide layers are."""
    if cut:
        for module, name, value in (
            (fit_down, "WHOLE", 64),
            (fit_down, "COLUMNS", 40),
            (fit_down, "JUDGED", 3),
            (repaired_layer, "ROW_VALUES", 256 * 100),
            (routed_block, "TOKEN_VALUES", 256 * 50),
        ):
            monkeypatch.setattr(module, name, value)
    samples = samples_of(qwen3moe)
    made = {written(qwen3moe, samples, tmp_path / "out.gguf", n, GgmlKernels()) for n in (1, 2, 5)}
    assert len(made) == 1
    other = replace(
        samples, layers={n: LayerSample(s.inputs[::-1], s.outputs[::-1]) for n, s in samples.layers.items()}
    )
    assert written(qwen3moe, other, tmp_path / "out.gguf", 2, GgmlKernels()) not in made


def test_nothing_is_quantized_twice(qwen3moe: Path, tmp_path: Path) -> None:
    """Each matrix once as it is, once for each step of its feedback, and once for the file."""
    kernels = Counting()
    written(qwen3moe, samples_of(qwen3moe), tmp_path / "out.gguf", 2, kernels)
    checkpoint = open_gguf(qwen3moe)
    experts = [info for info in checkpoint.tensors.values() if info.by_expert and len(info.shape) == 3]
    rows = sum(info.shape[1] * len(KEPT) for info in experts)
    assert kernels.rows["Q2_K"] == rows * (len(STEPS) + 2)


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A layer that is repaired by three threads in a process of its own, under the bound of docs/scale.md."""
    busiest = one_layer_memory.prepare(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", one_layer_memory.__name__, str(tmp_path), str(busiest)],
        cwd=Path(one_layer_memory.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["peak"] < found["bound"]
    assert found["peak"] > 0.4 * found["bound"], "a bound that is never near says nothing"
