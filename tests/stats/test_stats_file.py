"""The stats file: our own round trip, llama.cpp's imatrix layout, and damage."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models.imatrix_files import write_imatrix
from small_models.odd_stats import LAYERS, small_stats, with_key

from collab_plugin.errors import CollabError
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting
from collab_plugin.stats.stats_file import (
    as_stored,
    read_stats,
    sha256_when_written,
    unmeasured,
    write_stats,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "stats.gguf"
    write_stats(path, small_stats())
    return path


# -- round trip


def test_round_trip(written: Path) -> None:
    before, after = small_stats(), read_stats(written)
    for name in ("tokens", "chunk_size", "datasets", "model_id", "engine"):
        assert getattr(after, name) == getattr(before, name)
    np.testing.assert_array_equal(after.text_sketch, before.text_sketch)
    assert set(after.imatrix) == set(before.imatrix)
    for name, entry in before.imatrix.items():
        np.testing.assert_array_equal(after.imatrix[name].sum2, entry.sum2)
        np.testing.assert_array_equal(after.imatrix[name].count, entry.count)
    assert after.streams == before.streams
    assert after.shared_gates == pytest.approx(before.shared_gates, rel=1e-7)
    assert after.rounding == before.rounding
    assert set(after.routing) == set(before.routing)
    for layer, routing in before.routing.items():
        read = after.routing[layer]
        assert read.tokens == routing.tokens
        np.testing.assert_array_equal(read.count, routing.count)
        np.testing.assert_array_equal(read.unseen, routing.count == 0)
        # Two float32 hold 48 bits of a float64.
        np.testing.assert_allclose(read.weight_sum, routing.weight_sum, rtol=2**-47)
        np.testing.assert_allclose(read.reap_sum, routing.reap_sum, rtol=2**-47)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(0, 2**47), min_size=2, max_size=8), sums=st.data())
def test_large_counts_are_exact(counts: list[int], sums: st.DataObject, tmp_path: Path) -> None:
    """Beyond 2^24 one float32 is not enough: a calibration of a few million tokens gets there."""
    weights = np.array(sums.draw(st.lists(st.floats(0, 1e15), min_size=len(counts), max_size=len(counts))))
    routing = {1: LayerRouting(7, np.array(counts), weights, weights)}
    stats = dataclasses.replace(small_stats(), routing=routing)
    write_stats(tmp_path / "stats.gguf", stats)
    read = read_stats(tmp_path / "stats.gguf").routing[1]
    assert read.count.tolist() == counts
    np.testing.assert_allclose(read.weight_sum, weights, rtol=2**-47, atol=1e-40)


def test_same_stats_same_bytes(written: Path, tmp_path: Path) -> None:
    write_stats(tmp_path / "again.gguf", small_stats())
    assert (tmp_path / "again.gguf").read_bytes() == written.read_bytes()
    assert file_sha256(written) == hashlib.sha256(written.read_bytes()).hexdigest()
    write_stats(tmp_path / "other.gguf", small_stats(1))
    assert file_sha256(tmp_path / "other.gguf") != file_sha256(written)


def test_stats_in_memory_are_those_of_the_file(written: Path) -> None:
    assert sha256_when_written(small_stats()) == hashlib.sha256(written.read_bytes()).hexdigest()
    stored, read = as_stored(small_stats()), read_stats(written)
    for layer, routing in read.routing.items():
        np.testing.assert_array_equal(stored.routing[layer].weight_sum, routing.weight_sum)
        np.testing.assert_array_equal(stored.routing[layer].reap_sum, routing.reap_sum)


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="cannot write"):
        write_stats(tmp_path / "no" / "stats.gguf", small_stats())
    assert list(tmp_path.iterdir()) == []


# -- llama.cpp's layout


def test_it_is_a_valid_imatrix(written: Path) -> None:
    """As common/imatrix-loader.cpp reads it: keys of three names, F32 sums [n, C] and counts [1, C]."""
    reader = GGUFReader(written)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt", "ü b.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 40
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    for name in ("chunk_count", "chunk_size"):
        assert reader.fields[f"imatrix.{name}"].types == [GGUFValueType.UINT32]
    tensors = {t.name: t for t in reader.tensors}
    for name, entry in small_stats().imatrix.items():
        sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
        assert sums.tensor_type == counts.tensor_type == GGMLQuantizationType.F32
        slices = len(entry.count)
        assert sums.shape.tolist()[0] == entry.sum2.shape[1]
        assert int(np.prod(sums.shape)) == entry.sum2.size
        assert counts.shape.tolist() == [1, slices]
        np.testing.assert_array_equal(sums.data.reshape(slices, -1), entry.sum2)
        np.testing.assert_array_equal(counts.data.ravel(), entry.count)
    ours = [name for name in tensors if not name.endswith((".in_sum2", ".counts"))]
    assert sorted(ours) == sorted(
        [
            *(f"blk.{layer}.collab_router" for layer in LAYERS),
            *(f"blk.{layer}.collab_stream" for layer in (0, *LAYERS)),
            *(f"{name}.collab_rounding" for name in small_stats().imatrix),
            "blk.2.collab_shared_gate",
        ]
    )


def test_an_imatrix_of_others_has_counts_alone(tmp_path: Path) -> None:
    stats = read_stats(write_imatrix(tmp_path / "imatrix.gguf", small_stats().imatrix))
    assert stats.model_id is None
    assert stats.engine == "imatrix of another tool"
    assert stats.tokens == 5120
    assert stats.datasets == ("wiki.train.raw",)
    assert len(stats.text_sketch) == 0
    for layer, routing in small_stats().routing.items():
        np.testing.assert_array_equal(stats.routing[layer].count, routing.count)
        assert stats.routing[layer].weight_sum is None
        assert stats.routing[layer].reap_sum is None


# -- importance vectors


def test_importance_is_the_mean_square() -> None:
    entry = ImatrixEntry(np.array([[2, 4], [9, 27], [0, 0]], np.float32), np.array([2, 9, 0], np.float32))
    np.testing.assert_array_equal(entry.vector(0, 2), [1, 2])
    np.testing.assert_array_equal(entry.vector(1, 2), [1, 3])
    np.testing.assert_array_equal(entry.vector(2, 2), [1, 1])  # never seen: all alike


def test_experts_borrow_from_their_layer() -> None:
    """λ tokens of the mean of all 11 tokens, (11, 31) / 11, on top of an expert's own."""
    entry = ImatrixEntry(np.array([[2, 4], [9, 27], [0, 0]], np.float32), np.array([2, 9, 0], np.float32))
    np.testing.assert_allclose(entry.vector(0, 2, 22), [(2 + 22) / 24, (4 + 62) / 24], rtol=1e-6)
    np.testing.assert_allclose(entry.vector(2, 2, 22), [1, 31 / 11], rtol=1e-6)  # never seen: the mean alone
    np.testing.assert_array_equal(entry.vector(1, 2, 0), entry.vector(1, 2))
    dense = ImatrixEntry(np.array([[2, 4]], np.float32), np.array([2], np.float32))
    np.testing.assert_array_equal(dense.vector(0, 2, 22), [1, 2])


def test_importance_of_a_head() -> None:
    entry = ImatrixEntry(np.array([[2, 4, 6, 8]], np.float32), np.array([2], np.float32))
    np.testing.assert_array_equal(entry.vector(0, 2), [1, 2])
    np.testing.assert_array_equal(entry.vector(1, 2), [3, 4])
    np.testing.assert_array_equal(entry.vector(0, 4), [1, 2, 3, 4])


@pytest.mark.parametrize(("index", "n"), [(3, 2), (0, 3), (0, 1), (-4, 2)])
def test_vectors_that_do_not_exist(index: int, n: int) -> None:
    entry = ImatrixEntry(np.ones((3, 2), np.float32), np.ones(3, np.float32))
    with pytest.raises((ValueError, IndexError)):
        entry.vector(index, n)


# -- damage


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated(data: st.DataObject, written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])
    with pytest.raises(CollabError) as error:
        read_stats(cut)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def header_bytes(written: Path) -> int:
    return int(min(t.data_offset for t in GGUFReader(written).tensors))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_header(data: st.DataObject, written: Path, header_bytes: int, tmp_path: Path) -> None:
    """Any bytes of the header changed: read as stats, or refused in one line."""
    whole = bytearray(written.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, header_bytes - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated.gguf"
    path.write_bytes(whole)
    try:
        read_stats(path)
    except CollabError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("name", ["blk.1.attn_q.weight.in_sum2", "blk.2.ffn_up_exps.weight.counts"])
def test_values_that_cannot_be(value: float, name: str, written: Path, tmp_path: Path) -> None:
    path = _poke(written, tmp_path, name, value)
    with pytest.raises(CollabError, match=f"{name} holds values that are not finite or negative"):
        read_stats(path)


def test_negative_count_of_ours(written: Path, tmp_path: Path) -> None:
    path = _poke(written, tmp_path, "blk.1.collab_router", -50_000.0)
    with pytest.raises(CollabError, match="the routing of layer 1 is damaged"):
        read_stats(path)


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
def test_a_stream_without_a_norm(value: float, written: Path, tmp_path: Path) -> None:
    path = _poke(written, tmp_path, "blk.0.collab_stream", value)
    with pytest.raises(CollabError, match=r"blk\.0\.collab_stream is damaged"):
        read_stats(path)


@pytest.mark.parametrize("value", [np.nan, -1e-9, 1.5, np.inf])
def test_rounding_that_loses_less_than_nothing_or_more_than_all(value: float, written: Path, tmp_path: Path) -> None:
    path = _poke(written, tmp_path, "blk.1.ffn_down_exps.weight.collab_rounding", value)
    with pytest.raises(CollabError, match=r"blk\.1\.ffn_down_exps\.weight\.collab_rounding is damaged"):
        read_stats(path)


@pytest.mark.parametrize("value", [np.nan, -1e-9, 1.5])
def test_a_sigmoid_s_square_that_cannot_be(value: float, written: Path, tmp_path: Path) -> None:
    path = _poke(written, tmp_path, "blk.2.collab_shared_gate", value)
    with pytest.raises(CollabError, match=r"blk\.2\.collab_shared_gate is damaged"):
        read_stats(path)


def _poke(written: Path, folder: Path, tensor: str, value: float) -> Path:
    path = folder / "poked.gguf"
    shutil.copy(written, path)
    at = next(t.data_offset for t in GGUFReader(written).tensors if t.name == tensor)
    with path.open("r+b") as file:
        file.seek(int(at))
        file.write(struct.pack("<f", value))
    return path


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("general.type", 1, GGUFValueType.UINT32),
        ("imatrix.chunk_size", "512", GGUFValueType.STRING),
        ("imatrix.datasets", "a.txt", GGUFValueType.STRING),
        ("collab.stats.version", 2, GGUFValueType.UINT32),
        ("collab.stats.tokens", "many", GGUFValueType.STRING),
        ("collab.stats.engine", 5, GGUFValueType.UINT32),
    ],
)
def test_keys_of_another_kind(key: str, value: object, kind: GGUFValueType, tmp_path: Path) -> None:
    with pytest.raises(CollabError) as error:
        read_stats(with_key(tmp_path / "stats.gguf", key, value, kind))
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="does not exist"):
        read_stats(tmp_path / "none.gguf")
    with pytest.raises(CollabError, match="cannot read"):
        file_sha256(tmp_path / "none.gguf")


def test_rests_that_round_to_half_of_the_last_place(tmp_path: Path) -> None:
    """A tie when the two floats are added again: written as read, the file must stay the same."""
    tie = 1 + 2**-23 + 2**-24 - 2**-51
    values = np.array([tie, 3 * tie, -tie + 2, 2**40 * tie, 0, 1, 1e15, 7.0])
    routing = {1: LayerRouting(7, np.arange(8), values, values)}
    path = tmp_path / "stats.gguf"
    write_stats(path, dataclasses.replace(small_stats(), routing=routing))
    stats, before = read_stats(path), path.read_bytes()
    np.testing.assert_allclose(stats.routing[1].weight_sum, values, rtol=2**-47)
    write_stats(path, stats)
    assert path.read_bytes() == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(0, 1e15), min_size=8, max_size=8))
def test_any_stats_are_the_same_when_written_as_read(values: list[float], tmp_path: Path) -> None:
    """A plan of stats in memory records the hash of the file that they came from."""
    sums = np.array(values)
    path = tmp_path / "stats.gguf"
    write_stats(path, dataclasses.replace(small_stats(), routing={1: LayerRouting(7, np.arange(8), sums, sums)}))
    assert sha256_when_written(read_stats(path)) == file_sha256(path)


def test_routing_alone_says_what_is_missing(tmp_path: Path) -> None:
    """An engine that measures no importance matrix and no REAP sums."""
    whole = small_stats()
    routing = {layer: dataclasses.replace(one, reap_sum=None) for layer, one in whole.routing.items()}
    write_stats(tmp_path / "stats.gguf", dataclasses.replace(whole, routing=routing, imatrix={}))
    read = read_stats(tmp_path / "stats.gguf")
    assert read.imatrix == {}
    assert unmeasured(read) == ("reap_sum", "imatrix")
    assert unmeasured(whole) == ()
    for layer, one in read.routing.items():
        assert one.reap_sum is None
        np.testing.assert_array_equal(one.count, whole.routing[layer].count)
        np.testing.assert_allclose(np.asarray(one.weight_sum), np.asarray(whole.routing[layer].weight_sum), rtol=1e-12)
