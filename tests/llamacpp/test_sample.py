"""What llama.cpp shows of experts is what our block computes; and what is written of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.hand_made_plans import pruned, typed_plan
from small_models.tiny_moe import write_deepseek2, write_qwen3moe
from threadpoolctl import threadpool_limits

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Windows
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.progress import untold
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint
from collab_plugin.repair.routed_block import RoutedBlock
from collab_plugin.repair.samples import BlockSamples, LayerSample, read_samples, writing_samples

ENGINE = LlamaCppEngine()
CTX = 64


def sampled(model: Path, text: Path, out: Path, chunks: int = 2) -> BlockSamples:
    ENGINE.sample(model, Windows((text,), CTX, chunks), out=out, threads=1, progress=untold)
    return read_samples(out)


@pytest.mark.parametrize("write", [write_qwen3moe, write_deepseek2])
def test_block_computes_what_llamacpp_computes(write: Callable[[Path], Path], tmp_path: Path, text: Path) -> None:
    model = write(tmp_path / "model.gguf")
    samples = sampled(model, text, tmp_path / "samples.gguf")
    checkpoint = open_gguf(model)
    topology = topology_of(checkpoint)
    assert set(samples.layers) == set(topology.moe_layers)
    assert (samples.tokens, samples.ctx, samples.model_id) == (2 * CTX, CTX, model_id(checkpoint))
    for layer, sample in samples.layers.items():
        block = RoutedBlock(checkpoint, topology, layer)
        every = tuple(range(topology.expert_count))
        choice = block.choose(sample.inputs, every, topology.experts_used, grouped=topology.groups > 1)
        difference = np.abs(block.outputs(sample.inputs, choice) - sample.outputs).max(1)
        # A near-tie in the router sends a token elsewhere; all others agree to rounding.
        assert np.quantile(difference, 0.9) < 1e-3 * np.abs(sample.outputs).max()


def test_written_file_holds_repaired_experts(qwen3moe: Path, tmp_path: Path, text: Path) -> None:
    original = open_gguf(qwen3moe)
    samples = sampled(qwen3moe, text, tmp_path / "samples.gguf", chunks=10)
    plan = pruned(original, copy_plan(original), (3, 0, 1))
    out = tmp_path / "out.gguf"
    compress(original, plan, None, out, kernels=None, threads=2, report=untold, samples=samples)
    repaired, written = RepairedCheckpoint(original, plan, samples), open_gguf(out)
    for layer in samples.layers:
        name = f"blk.{layer}.ffn_down_exps.weight"
        with one_blas_thread():
            for new, old in enumerate((3, 0, 1)):
                assert np.array_equal(written.read(name, expert=new), repaired.read(name, expert=old))


def test_quantized_experts_lose_less_on_text_that_they_were_not_fitted_to(
    qwen3moe: Path, tmp_path: Path, text: Path
) -> None:
    """All experts kept: feedback of gate and up, `down` fitted to what they give, and feedback of that."""
    original = open_gguf(qwen3moe)
    seen = sampled(qwen3moe, text, tmp_path / "seen.gguf", chunks=10)
    other = tmp_path / "other.txt"
    other.write_text(Path(__file__).read_text())
    unseen = sampled(qwen3moe, other, tmp_path / "unseen.gguf", chunks=4)
    plan = typed_plan(original, lambda i: "Q2_K" if i.by_expert else "F32")
    lost = []
    for samples in (None, seen):
        out = tmp_path / "out.gguf"
        compress(original, plan, None, out, kernels=GgmlKernels(), threads=2, report=untold, samples=samples)
        written = open_gguf(out)
        topology = topology_of(written)
        lost.append(0.0)
        for layer, sample in unseen.layers.items():
            block = RoutedBlock(written, topology, layer)
            every = tuple(range(topology.expert_count))
            choice = block.choose(sample.inputs, every, topology.experts_used, grouped=False)
            lost[-1] += float(np.square(block.outputs(sample.inputs, choice) - sample.outputs).sum())
    assert lost[1] < 0.8 * lost[0]


def test_bytes_do_not_depend_on_the_threads_of_blas(qwen3moe: Path, tmp_path: Path, text: Path) -> None:
    original = open_gguf(qwen3moe)
    samples = sampled(qwen3moe, text, tmp_path / "samples.gguf", chunks=10)
    plan = pruned(original, typed_plan(original, lambda i: "Q2_K" if i.by_expert else "F32"), (3, 0, 1))
    written = []
    for threads in (1, 2):
        out = tmp_path / "out.gguf"
        with threadpool_limits(limits=threads, user_api="blas"):
            compress(original, plan, None, out, kernels=GgmlKernels(), threads=2, report=untold, samples=samples)
        written.append(out.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e20])
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_samples_of_no_model_are_refused(qwen3moe: Path, tmp_path: Path, text: Path, kind: str, value: float) -> None:
    """Native kernels end the process on some of such numbers."""
    original = open_gguf(qwen3moe)
    samples = sampled(qwen3moe, text, tmp_path / "samples.gguf")
    layers = {n: LayerSample(s.inputs.copy(), s.outputs.copy()) for n, s in samples.layers.items()}
    for layer in layers.values():
        getattr(layer, kind)[-1, 3] = value
    broken = replace(samples, layers=layers)
    plan = typed_plan(original, lambda i: "IQ2_S" if i.by_expert else "F32")
    out = tmp_path / "out.gguf"
    with pytest.raises(CollabError, match=r"samples\.gguf holds numbers that no model gives"):
        compress(original, plan, None, out, kernels=GgmlKernels(), threads=2, report=untold, samples=broken)
    assert not out.exists()


@pytest.mark.parametrize("ctx", [0, 65, 2**32 - 1])
def test_windows_longer_than_the_samples_are_refused(ctx: int, tmp_path: Path) -> None:
    path = tmp_path / "samples.gguf"
    with writing_samples(path, [0], 64, 8, ctx=ctx, model_id="", engine=""):
        pass
    with pytest.raises(CollabError, match="is damaged; sample again"):
        read_samples(path)


def test_other_files_are_refused(qwen3moe: Path, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="no samples file"):
        read_samples(qwen3moe)
    with pytest.raises(CollabError, match="does not exist"):
        read_samples(tmp_path / "none.gguf")
