"""Repair a layer of random values in this process, and print its peak of memory and the bound as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import psutil
from collab_llamacpp.native.ggml_kernels import GgmlKernels

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.compression.peak_memory import peak_memory
from collab_plugin.repair import fit_down
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.repair_memory import RepairShape
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import read_samples, writing_samples
from small_models.hand_made_plans import typed_plan
from small_models.tiny_moe import write_qwen3moe

TOKENS, CTX, EXPERTS, WIDTH, LAYER, THREADS = 24576, 128, 24, 256, 0, 3
PIECE = 64
"""Columns that are fitted together, so that there are pieces for all threads."""


def main(folder: Path, busiest: int) -> None:
    checkpoint = open_gguf(folder / "model.gguf")
    plan = typed_plan(checkpoint, lambda info: "Q4_K" if info.by_expert else "F32")
    fit_down.WHOLE = fit_down.COLUMNS = PIECE
    samples, kernels = read_samples(folder / "samples.gguf"), GgmlKernels()
    with one_blas_thread():
        repaired = RepairedCheckpoint(
            checkpoint, plan, samples, Rounding(checkpoint, plan, None, kernels), threads=THREADS
        )
        before = psutil.Process().memory_info().rss
        assert peak_memory() < before + 2**24, "what was done before must not hide what repair takes"
        repaired.repair(LAYER)
    stored = sum(repaired.tensors[name].nbytes for name, layer in repaired.repaired.items() if layer == LAYER)
    shape = RepairShape(TOKENS, WIDTH, WIDTH, EXPERTS, plan.activation.used, busiest, stored)
    print(json.dumps({"peak": peak_memory() - before, "bound": shape.bound(THREADS)}))


def prepare(folder: Path) -> int:
    """Write the model, and random tokens with what all experts give; how many the busiest expert gets."""
    checkpoint = open_gguf(write_qwen3moe(folder / "model.gguf", experts=EXPERTS))
    topology = topology_of(checkpoint)
    block, random = RoutedBlock(checkpoint, topology, LAYER), np.random.default_rng(0)
    basis, step = random.standard_normal((32, WIDTH)) / 6, 1024
    every, counts = tuple(range(EXPERTS)), np.zeros(EXPERTS, int)
    out = folder / "samples.gguf"
    with writing_samples(out, (LAYER,), TOKENS, WIDTH, ctx=CTX, model_id="", engine="") as layers:
        for at in range(0, TOKENS, step):
            inputs = (random.standard_normal((step, 32)) @ basis).astype(np.float32)
            choice = block.choose(inputs, every, topology.experts_used, grouped=False)
            counts += np.bincount(choice.ids.reshape(-1), minlength=EXPERTS)
            layers[LAYER].inputs[at : at + step] = inputs
            layers[LAYER].outputs[at : at + step] = block.outputs(inputs, choice)
    return int(counts.max())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
