"""The copy in which tensors are worse for a while, on random models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models.model_bench import Bench

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.planning.measure.scratch_copy import Scratch
from collab_plugin.stats.importance_matrix import ImportanceMatrix


def test_scratch(runnable: Bench, tmp_path: Path) -> None:
    """Within: these tensors as they come back from their types, all others untouched. Then every byte as before."""
    checkpoint, stats, kernels = runnable.checkpoint, runnable.source.stats, runnable.kernels
    scratch = Scratch(checkpoint, ImportanceMatrix.of(stats, 0.0), kernels, tmp_path, 2)
    before = scratch.path.read_bytes()
    types = {"blk.0.attn_q.weight": "IQ3_XXS", "blk.1.ffn_down_exps.weight": "Q2_K", "output.weight": "IQ3_S"}
    with scratch.quantized(types) as path:
        worse = open_gguf(path)
        for name, info in checkpoint.tensors.items():
            if name not in types:
                np.testing.assert_array_equal(worse.read(name), checkpoint.read(name))
                continue
            values = checkpoint.read(name)
            slices = values if values.ndim == 3 else values[None]
            for i, (rows, back) in enumerate(zip(slices, worse.read(name).reshape(slices.shape), strict=True)):
                entry = stats.imatrix.get(name)
                vector = None if entry is None else entry.vector(i, info.shape[-1])
                expected = kernels.dequantize(kernels.quantize(rows, types[name], vector), types[name], info.shape[-1])
                np.testing.assert_array_equal(back, expected)
                assert not np.array_equal(back, rows)
    assert scratch.path.read_bytes() == before


def test_scratch_is_restored_after_an_error(runnable: Bench, tmp_path: Path) -> None:
    scratch = Scratch(runnable.checkpoint, None, runnable.kernels, tmp_path, 1)
    before = scratch.path.read_bytes()
    with pytest.raises(KeyboardInterrupt), scratch.quantized({"output.weight": "Q2_K"}) as path:
        assert path.read_bytes() != before
        raise KeyboardInterrupt
    assert scratch.path.read_bytes() == before


def test_scratch_of_half_precision(softmax: Bench, tmp_path: Path) -> None:
    """Stored as F16, written back as F16."""
    scratch = Scratch(softmax.checkpoint, ImportanceMatrix.of(softmax.source.stats, 0.0), softmax.kernels, tmp_path, 1)
    name = "blk.1.attn_output.weight"
    before = scratch.path.read_bytes()
    with scratch.quantized({name: "Q4_K"}) as path:
        found = open_gguf(path)
        assert found.tensors[name].type.name == "F16"
        values = softmax.checkpoint.read(name)
        vector = softmax.source.stats.imatrix[name].vector(0, 256)
        back = softmax.kernels.dequantize(softmax.kernels.quantize(values, "Q4_K", vector), "Q4_K", 256)
        np.testing.assert_array_equal(found.read(name), back.astype(np.float16).astype(np.float32))
    assert scratch.path.read_bytes() == before
