"""Statistics brought onto a model that is not quite the one they were measured on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray
from small_models.hand_made_plans import pruned, typed_plan
from small_models.imatrix_files import write_imatrix
from small_models.tiny_moe import write_qwen3moe

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.progress import untold
from collab_plugin.stats.match_model import Matched, match_model, without_data
from collab_plugin.stats.stats import ImatrixEntry, InputRounding, LayerRouting, Stats
from collab_plugin.stats.stats_file import read_stats

F32 = np.float32
EXPERTS, WIDTH = 4, 32
GATE_UP, GATE, UP, DOWN = (f"blk.0.ffn_{part}_exps.weight" for part in ("gate_up", "gate", "up", "down"))
QKV, QUERY, KEY = "blk.0.attn_qkv.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight"


def small_model(path: Path, names: Sequence[str], experts: int = EXPERTS) -> Checkpoint:
    """A GGUF with these matrices, of ``experts`` slices where they are experts'."""
    writer = GGUFWriter(path, "qwen3moe")
    for name in names:
        shape = (experts, WIDTH, WIDTH) if "_exps" in name else (WIDTH, WIDTH)
        writer.add_tensor(name, np.ones(shape, F32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_gguf(path)


def by_expert(experts: int = EXPERTS, width: int = WIDTH, seed: int = 0) -> ImatrixEntry:
    rng = np.random.default_rng(seed)
    count = np.arange(1, experts + 1).astype(F32)
    return ImatrixEntry((rng.gamma(1, 1, (experts, width)) * count[:, None]).astype(F32), count)


def one_count(experts: int = EXPERTS, width: int = WIDTH) -> ImatrixEntry:
    """As converted from the format before GGUF: expert ``e`` has the mean e + 1 in every column."""
    return ImatrixEntry(np.repeat(np.arange(1, experts + 1, dtype=F32) * 4, width)[None], np.array([4], F32))


def dense(value: float = 2, width: int = WIDTH) -> ImatrixEntry:
    return ImatrixEntry(np.full((1, width), value, F32), np.ones(1, F32))


def stats_of(entries: Mapping[str, ImatrixEntry], routing: Mapping[int, LayerRouting] | None = None) -> Stats:
    return Stats(routing or {}, entries, 512, 512)


def matched(entries: Mapping[str, ImatrixEntry], checkpoint: Checkpoint) -> Matched:
    return match_model(stats_of(entries), checkpoint, "imatrix.gguf")


def vectors(found: Matched, name: str, experts: int, borrow: float = 0.0) -> NDArray[np.float32]:
    return np.stack([found.stats.imatrix[name].vector(i, WIDTH, borrow) for i in range(experts)])


# -- the same weights in one tensor or in several


@pytest.mark.parametrize(
    ("stored", "tensors"), [(GATE_UP, (GATE, UP)), (QKV, (QUERY, KEY)), (GATE, (GATE_UP,)), (UP, (GATE_UP,))]
)
def test_tensors_with_the_same_input_share_importance(stored: str, tensors: Sequence[str], tmp_path: Path) -> None:
    checkpoint = small_model(tmp_path / "model.gguf", [*tensors, DOWN])
    entry = by_expert() if "_exps" in stored else dense()
    stats = dataclasses.replace(
        stats_of({stored: entry, DOWN: by_expert(seed=1)}), rounding={stored: InputRounding(1e-3, 1e-4)}
    )
    found = match_model(stats, checkpoint, "imatrix.gguf")
    for name in tensors:
        assert found.stats.imatrix[name] is entry
        assert found.stats.rounding[name] is stats.rounding[stored]
    assert DOWN not in found.stats.rounding
    shared = ", ".join(f"{name} that of {stored}" for name in tensors)
    assert found.notes == (f"{len(tensors)} tensors have the importance of a tensor with the same input: {shared}",)
    assert without_data(checkpoint, found.stats) == ()


def test_what_fits_is_left_alone(tmp_path: Path) -> None:
    entries = {GATE: by_expert(), UP: by_expert(seed=1), GATE_UP: by_expert(seed=2), DOWN: one_count()}
    found = matched(entries, small_model(tmp_path / "model.gguf", [GATE, UP, GATE_UP, DOWN]))
    assert dict(found.stats.imatrix) == entries
    assert found.notes == ()


# -- experts pruned since


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_qwen3moe(tmp_path / "original.gguf")


def prune(source: Path, out: Path, kept: Sequence[int]) -> Checkpoint:
    checkpoint = open_gguf(source)
    plan = pruned(checkpoint, typed_plan(checkpoint, lambda info: info.type.name), kept)
    compress(checkpoint, plan, None, out, kernels=None, threads=1, report=untold)
    return open_gguf(out)


def entries_of(checkpoint: Checkpoint, expert_entry: ImatrixEntry) -> dict[str, ImatrixEntry]:
    names = [n for n, i in checkpoint.tensors.items() if i.layer is not None and len(i.shape) > 1 and "inp" not in n]
    return {n: expert_entry if "_exps" in n else dense(width=checkpoint.tensors[n].shape[-1]) for n in names}


@pytest.mark.parametrize("entry", [one_count(width=256), by_expert(width=256)], ids=["one count", "counts"])
def test_kept_experts_have_their_own_importance(entry: ImatrixEntry, original: Path, tmp_path: Path) -> None:
    """The file says which experts of its source it holds, and in which order."""
    kept = (3, 0, 2)
    cut = prune(original, tmp_path / "cut.gguf", kept)
    path = write_imatrix(tmp_path / "imatrix.gguf", entries_of(cut, entry))
    found = match_model(read_stats(path), cut, str(path))
    for at, expert in enumerate(kept):
        whole = entry.vector(expert, 256)
        np.testing.assert_array_equal(found.stats.imatrix["blk.1.ffn_up_exps.weight"].vector(at, 256), whole)
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the stats are of the model that this one was pruned from")
    if len(entry.count) > 1:
        assert found.stats.routing[1].count.tolist() == [4, 1, 3]
    again = match_model(found.stats, cut, str(path))
    np.testing.assert_array_equal(again.stats.imatrix[UP].sum2, found.stats.imatrix[UP].sum2)
    assert again.notes == ()


def test_our_stats_of_the_source_are_mapped_by_its_id(original: Path, tmp_path: Path) -> None:
    """Also where every expert stayed in another order: their sizes alone would not tell."""
    order = (3, 2, 0, 1)
    turned = prune(original, tmp_path / "turned.gguf", order)
    routing = LayerRouting(50, np.array([1, 2, 3, 4]), np.array([0.1, 0.2, 0.3, 0.4]), np.array([5.0, 6.0, 7.0, 8.0]))
    stats = dataclasses.replace(
        stats_of(entries_of(turned, by_expert(width=256)), {0: routing, 1: routing}),
        model_id=model_id(open_gguf(original)),
    )
    found = match_model(stats, turned, "stats.gguf").stats
    assert found.model_id == model_id(turned)
    assert found.routing[1].count.tolist() == [4, 3, 1, 2]
    assert found.routing[1].weight_sum is not None
    assert found.routing[1].reap_sum is not None
    assert found.routing[1].weight_sum.tolist() == [0.4, 0.3, 0.1, 0.2]
    assert found.routing[1].reap_sum.tolist() == [8, 7, 5, 6]
    np.testing.assert_array_equal(found.imatrix[DOWN].count, [4, 3, 1, 2])
    twice = match_model(found, turned, "stats.gguf").stats
    assert twice.routing[1].count.tolist() == [4, 3, 1, 2]
    with pytest.raises(CollabError, match=r"stats\.gguf was calibrated on another model than"):
        match_model(dataclasses.replace(stats, model_id="sha256:" + "0" * 64), turned, "stats.gguf")


def test_an_order_that_nothing_tells_is_noted(original: Path, tmp_path: Path) -> None:
    turned = prune(original, tmp_path / "turned.gguf", (3, 2, 0, 1))
    found = matched(entries_of(turned, by_expert(width=256)), turned)
    assert [note.split(" than ")[0] for note in found.notes] == ["this file has its experts in another order"]


def test_more_experts_than_an_unmarked_model_has(tmp_path: Path) -> None:
    """One count for 4 experts on a model of 3: they were swapped without a word before."""
    checkpoint = small_model(tmp_path / "model.gguf", [UP, DOWN], experts=3)
    line = (
        f"imatrix.gguf does not fit {checkpoint.path}: {UP} has 128 sums and 1 counts, the tensor 3 slices of rows of "
        "32; calibrate this model"
    )
    with pytest.raises(CollabError, match=re.escape(line)):
        matched({UP: one_count(), DOWN: one_count()}, checkpoint)
    with pytest.raises(CollabError, match=r"has 128 sums and 4 counts, the tensor 3 slices"):
        matched({UP: by_expert(), DOWN: by_expert()}, checkpoint)


def test_experts_of_a_file_that_was_pruned_twice(original: Path, tmp_path: Path) -> None:
    """Its ids are of the file between, so what was made of the first model is refused."""
    between = prune(original, tmp_path / "between.gguf", (0, 1, 3))
    last = prune(between.path, tmp_path / "last.gguf", (0, 2))
    assert last.metadata["collab.source.expert_count"].value == 3
    assert "collab.source.expert_count" not in between.metadata
    with pytest.raises(CollabError, match=r"has 1,024 sums and 4 counts, the tensor 2 slices"):
        matched(entries_of(last, by_expert(width=256)), last)
    entry = by_expert(3, 256)
    found = matched(entries_of(last, entry), last)
    np.testing.assert_array_equal(found.stats.imatrix[UP].vector(1, 256), entry.vector(2, 256))


# -- sums of zero, and other sizes


def test_counts_with_sums_of_zero_are_no_data(tmp_path: Path) -> None:
    """Importance of zero everywhere wipes an expert: ggml then gives all its weights the value 0."""
    entry = by_expert()
    entry.sum2[2] = 0
    checkpoint = small_model(tmp_path / "model.gguf", [UP, DOWN])
    found = matched({UP: entry, DOWN: by_expert()}, checkpoint)
    np.testing.assert_array_equal(vectors(found, UP, EXPERTS)[2], np.ones(WIDTH))
    mean = entry.sum2.sum(0) / entry.count[[0, 1, 3]].sum()
    np.testing.assert_allclose(vectors(found, UP, EXPERTS, borrow=8)[2], mean, rtol=1e-6)
    np.testing.assert_array_equal(vectors(found, UP, EXPERTS)[1], entry.sum2[1] / 2)
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"the stats count tokens but have sums of zero for 1 of {UP}: taken as without")


def test_one_count_with_sums_of_zero(tmp_path: Path) -> None:
    entry = one_count()
    entry.sum2[0, :WIDTH] = 0
    checkpoint = small_model(tmp_path / "model.gguf", [UP, DOWN])
    found = matched({UP: entry, DOWN: one_count()}, checkpoint)
    np.testing.assert_array_equal(vectors(found, UP, EXPERTS)[:, 0], [1, 2, 3, 4])
    np.testing.assert_array_equal(vectors(found, UP, EXPERTS, borrow=8)[0], np.full(WIDTH, 3))


def test_a_tensor_without_any_sums_has_no_data(tmp_path: Path) -> None:
    checkpoint = small_model(tmp_path / "model.gguf", [QUERY, KEY, DOWN])
    found = matched({QUERY: dense(0), KEY: dense(), DOWN: by_expert()}, checkpoint)
    assert without_data(checkpoint, found.stats) == (QUERY,)


@pytest.mark.parametrize("width", [WIDTH * 2, WIDTH - 1, 1])
def test_rows_of_another_width(width: int, tmp_path: Path) -> None:
    checkpoint = small_model(tmp_path / "model.gguf", [QUERY, KEY])
    line = f"{QUERY} has {width} sums and 1 counts, the tensor 1 slices of rows of 32"
    with pytest.raises(CollabError, match=re.escape(line)):
        matched({QUERY: dense(width=width), KEY: dense()}, checkpoint)


# -- names


def test_tensors_that_the_model_lacks_are_counted(tmp_path: Path) -> None:
    checkpoint = small_model(tmp_path / "model.gguf", [QUERY, DOWN])
    others = {f"blk.{n}.other.weight": dense() for n in (1, 2)}
    found = matched({QUERY: dense(), DOWN: by_expert(), **others}, checkpoint)
    names = "blk.1.other.weight, blk.2.other.weight"
    assert found.notes == (f"2 of the 4 tensors in the stats are not in the model: {names}",)
    assert set(found.stats.imatrix) == {QUERY, DOWN}
    with pytest.raises(CollabError, match=r"imatrix\.gguf names other tensors than"):
        matched({QUERY: dense(), **others}, checkpoint)
