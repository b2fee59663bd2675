"""Our bytes are llama_model_quantize's, type by type; pruning equals masking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from gguf import LlamaFileType
from small_models.hand_made_plans import pruned, typed_plan
from small_models.llama_cpp_calls import llama_quantize, logits
from small_models.tiny_moe import some_stats, write_deepseek2, write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.formats.ggml_types import QUANTIZED
from collab_plugin.plans.copy_plan import copy_plan


def _quiet(done: float, total: float | None = None) -> None: ...


SLOW = pytest.mark.slow
NAMES = [pytest.param(n, marks=SLOW) if n.startswith("IQ") else n for n in (*QUANTIZED, "F16", "BF16")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2"])
def test_bytes_equal_llama_model_quantize(
    name: str, model: str, tmp_path: Path, kernels: GgmlKernels, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    checkpoint = open_gguf(source)
    stats = some_stats(checkpoint)
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    llama_quantize(source, theirs, name, LlamaFileType.MOSTLY_Q8_0, checkpoint, stats)
    plan = typed_plan(checkpoint, lambda info: name)
    compress(checkpoint, plan, stats, ours, kernels=kernels, threads=2, report=_quiet)
    a, b = open_gguf(theirs), open_gguf(ours)
    assert set(a.tensors) == set(b.tensors)
    assert any(info.type.name == name for info in b.tensors.values())
    for tensor, info in a.tensors.items():
        assert b.tensors[tensor].type == info.type, tensor
        assert np.array_equal(a.read_raw(tensor), b.read_raw(tensor)), tensor


@pytest.mark.native
@pytest.mark.parametrize("write", [write_qwen3moe, write_deepseek2])
def test_pruning_a_quantized_file_equals_masking(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # either writer
    dropped, kept = (1,), (3, 0, 2)
    files = {}
    for label, masked in (("full", ()), ("masked", dropped)):
        source = write(tmp_path / f"{label}-f32.gguf", masked=masked)
        files[label] = tmp_path / f"{label}.gguf"
        llama_quantize(source, files[label], "", LlamaFileType.MOSTLY_Q4_K_M, open_gguf(source), None)
    checkpoint = open_gguf(files["full"])
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    out = tmp_path / "pruned.gguf"
    compress(checkpoint, plan, None, out, kernels=None, threads=2, report=_quiet)
    full, masked, ours = logits(files["full"]), logits(files["masked"]), logits(out)
    assert np.isfinite(ours).all()
    assert np.abs(full - masked).max() > 0.05, "the mask must matter, or the test proves nothing"
    assert np.abs(ours - masked).max() < 1e-3
