"""Tasks of a cluster, done here one after the other: whole repaired layers, and the bytes of one machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.hand_made_plans import pruned, typed_plan

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.ray_cluster import ClusterJob, RayCluster, TileWorker, tasks_of
from collab_plugin.compression.tiles import tiles_of
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import untold
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import BlockSamples, LayerSample

pytestmark = pytest.mark.native
TOKENS, CTX, CORES = 320, 32, 3


def sampled(checkpoint: Checkpoint) -> BlockSamples:
    topology, random = topology_of(checkpoint), np.random.default_rng(0)
    every, layers = tuple(range(topology.expert_count)), {}
    for layer in topology.moe_layers:
        block = RoutedBlock(checkpoint, topology, layer)
        inputs = (random.standard_normal((TOKENS, 24)) @ random.standard_normal((24, 256)) / 5).astype(np.float32)
        choice = block.choose(inputs, every, topology.experts_used, grouped=False)
        layers[layer] = LayerSample(inputs, block.outputs(inputs, choice))
    return BlockSamples(checkpoint.path, "", CTX, TOKENS, layers)


def job_of(model: Path, plan: Plan, samples: BlockSamples | None, out: Path) -> ClusterJob:
    checkpoint = open_gguf(model)
    cluster = RayCluster("", partial(open_gguf, model), GgmlKernels, lambda: samples)
    tiles = tiles_of(checkpoint, plan, artifact_layout(checkpoint, plan).offsets)
    together = {}
    if samples is not None:
        rounding = Rounding(checkpoint, plan, None, GgmlKernels())
        together = dict(RepairedCheckpoint(checkpoint, plan, samples, rounding).repaired)
    return ClusterJob(cluster, plan, None, tiles, [(str(out), 0)], together, CORES)


def test_repaired_layers_are_a_task_each(qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    plan = pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q2_K" if info.by_expert else "F32"), (3, 0, 2))
    samples, whole, out = sampled(checkpoint), tmp_path / "whole.gguf", tmp_path / "out.gguf"
    compress(checkpoint, plan, None, whole, kernels=GgmlKernels(), threads=1, report=untold, samples=samples)
    layout = artifact_layout(checkpoint, plan)
    out.write_bytes(layout.header.ljust(layout.total, b"\0"))
    job = job_of(qwen3moe, plan, samples, out)
    tasks = list(tasks_of(job, range(len(job.tiles)), 2))
    repaired = [i for i, tile in enumerate(job.tiles) if tile.tensor in job.together]
    layers = [[i for i in repaired if job.together[job.tiles[i].tensor] == layer] for layer in (0, 1)]
    assert tasks[:2] == [(indices, CORES) for indices in layers]
    assert all(cores == 1 for _, cores in tasks[2:])
    assert sorted(i for indices, _ in tasks for i in indices) == list(range(len(job.tiles)))
    worker = TileWorker(job)
    for indices, _ in reversed(tasks):
        assert [index for index, _ in worker.do(indices)] == indices
    worker.close()
    assert out.read_bytes() == whole.read_bytes()


def test_without_samples_every_task_takes_a_core(qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    job = job_of(qwen3moe, typed_plan(checkpoint, lambda info: "Q4_K"), None, tmp_path / "out.gguf")
    todo = list(range(3, len(job.tiles)))
    tasks = list(tasks_of(job, todo, 2))
    assert {cores for _, cores in tasks} == {1}
    assert [i for indices, _ in tasks for i in indices] == todo
