"""Importance matrices as others publish them, used on models that are not quite theirs. Reports are named.

Experts without data, partial data, sums of zero, pruned models: test_match_model.py. Damaged values and the layout
before GGUF (unsloth's and mradermacher's `.dat`): test_imatrix_file.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from small_models.imatrix_files import write_imatrix
from small_models.odd_gguf import EXPERTS, VOCABULARY, WIDTH, keys, tensors, values, write

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.formats.block_scales import scales_are_finite
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.match_model import match_model, without_data
from collab_plugin.stats.stats import ImatrixEntry, Stats
from collab_plugin.stats.stats_file import read_stats

F32 = np.float32
UP, DOWN, QUERY, HEAD = "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight", "output.weight"


def by_expert(width: int = WIDTH, unseen: tuple[int, ...] = ()) -> ImatrixEntry:
    count = np.arange(1, EXPERTS + 1).astype(F32)
    count[list(unseen)] = 0
    return ImatrixEntry((np.arange(1, width + 1) * count[:, None]).astype(F32), count)


def dense(width: int = WIDTH) -> ImatrixEntry:
    return ImatrixEntry(np.arange(1, width + 1, dtype=F32)[None] * 4, np.array([4], F32))


def test_a_model_with_another_vocabulary(tmp_path: Path) -> None:
    """Rows of the output matrix are counted by none of its sums: what was measured with fewer tokens fits."""
    stored = tensors()
    stored["output.weight"], stored["token_embd.weight"] = values(VOCABULARY + 9, WIDTH), values(VOCABULARY + 9, WIDTH)
    checkpoint = open_gguf(write(tmp_path / "m.gguf", stored))
    path = write_imatrix(tmp_path / "imatrix.gguf", {HEAD: dense(), UP: by_expert(), DOWN: by_expert(), QUERY: dense()})
    found = match_model(read_stats(path), checkpoint, "imatrix.gguf")
    np.testing.assert_array_equal(found.stats.imatrix[HEAD].vector(0, WIDTH), np.arange(1, WIDTH + 1))
    assert found.notes == ()


@pytest.mark.parametrize("name", ["imatrix_unsloth.gguf_file", "Model.imatrix.gguf", "Model.imatrix", "imatrix.dat"])
def test_names_of_files(name: str, tmp_path: Path) -> None:
    """A name tells nothing: unsloth hides theirs from viewers as `.gguf_file` (unsloth/Qwen3.5-27B-GGUF on the hub)."""
    stats = read_stats(write_imatrix(tmp_path / name, {UP: by_expert()}))
    np.testing.assert_array_equal(stats.imatrix[UP].vector(3, WIDTH), np.arange(1, WIDTH + 1))
    assert stats.routing[0].count.tolist() == [1, 2, 3, 4]


def test_an_expert_that_no_token_met(tmp_path: Path) -> None:
    """mradermacher's and unsloth's matrices of large models have such experts; ik_llama.cpp fills them with ones
    (ikawrakow/ik_llama.cpp pull request 202)."""
    checkpoint = open_gguf(write(tmp_path / "m.gguf", tensors()))
    stats = read_stats(
        write_imatrix(tmp_path / "i.gguf", {UP: by_expert(unseen=(2,)), DOWN: by_expert(), QUERY: dense()})
    )
    entry = match_model(stats, checkpoint, "i.gguf").stats.imatrix[UP]
    np.testing.assert_array_equal(entry.vector(2, WIDTH), np.ones(WIDTH))
    np.testing.assert_array_equal(entry.vector(2, WIDTH, borrow=32), np.arange(1, WIDTH + 1))


def test_layers_that_a_merge_added(tmp_path: Path) -> None:
    """A passthrough merge has more layers than what it was measured on (ggml-org/llama.cpp issue 6249)."""
    stored = tensors()
    stored |= {name.replace("blk.0", "blk.1"): array for name, array in stored.items() if name.startswith("blk.0")}
    checkpoint = open_gguf(write(tmp_path / "m.gguf", stored, keys(block_count=2)))
    gate = "blk.0.ffn_gate_exps.weight"
    stats = Stats({}, {UP: by_expert(), gate: by_expert(), DOWN: by_expert(), QUERY: dense()}, 512, 512)
    found = match_model(stats, checkpoint, "i.gguf")
    missing = {name.replace("blk.0", "blk.1") for name in (UP, gate, DOWN, QUERY)}
    assert set(without_data(checkpoint, found.stats)) == missing


@pytest.mark.parametrize("fits", [True, False])
def test_names_that_ik_llama_cpp_gives_to_mla(fits: bool, tmp_path: Path) -> None:
    """Its graph turns attn_k_b into slices, and the new name goes into the file (ikawrakow/ik_llama.cpp issue 651)."""
    name = "blk.0.attn_k_b.weight"
    path = write(tmp_path / "m.gguf", tensors() | {name: values(2, 16, 8)}, keys("deepseek2"), architecture="deepseek2")
    entries = {f"{name} (reshaped)": dense(16 if fits else 8), UP: by_expert(), DOWN: by_expert(), QUERY: dense()}
    stats = read_stats(write_imatrix(tmp_path / "i.gguf", entries))
    found = match_model(stats, open_gguf(path), "i.gguf")
    assert (name in found.stats.imatrix) is fits
    if fits:
        np.testing.assert_array_equal(found.stats.imatrix[name].vector(1, 8), np.arange(9, 17))
    else:
        assert found.notes == (f"1 of the 4 tensors in the stats are not in the model: {name} (reshaped)",)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "IQ4_NL", "IQ4_XS"])
@pytest.mark.parametrize("zeros", [32, 512])
def test_columns_without_importance(kind: str, zeros: int, kernels: Kernels) -> None:
    """Some columns of a tensor met zeros alone: 1,024 of them made NaN of Q4_K (ggml-org/llama.cpp issues 8661, 11764
    and 12439)."""
    importance = np.ones(512, F32)
    importance[:zeros] = 0
    made = kernels.quantize(values(2, 512), kind, importance)
    assert scales_are_finite(made, GGMLQuantizationType[kind])
    assert np.isfinite(kernels.dequantize(made, kind, 512)).all()
