"""Traces written and read back; the public forms that are imported; damage named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collab_plugin.errors import CollabError
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.trace_file import read_trace, write_trace

CHOSEN = np.array([[[0, 3], [1, 2]], [[2, -1], [0, 1]], [[3, 1], [2, 0]]], np.int16)
TRACE = RoutingTrace(CHOSEN, (1, 4), 4, (0, 2), ("prose", "code"), "sha256:00")


def same(a: RoutingTrace, b: RoutingTrace) -> None:
    np.testing.assert_array_equal(a.chosen, b.chosen)
    for name in ("layers", "experts", "starts", "labels", "model_id"):
        assert getattr(a, name) == getattr(b, name), name


def test_round_trip(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.npz", TRACE)
    same(read_trace(tmp_path / "t.npz"), TRACE)
    assert (TRACE.tokens, TRACE.requests) == (3, 11)
    assert TRACE.counts.tolist() == [[1, 1, 1, 2], [2, 2, 2, 0]]


def test_sequences_and_new_numbers() -> None:
    code = TRACE.sequences(TRACE.sequence_numbers("code"))
    same(code, RoutingTrace(CHOSEN[2:], (1, 4), 4, (0,), ("code",), "sha256:00"))
    pruned = TRACE.renumbered({1: (3, 0), 4: (1, 2)})
    assert pruned.chosen.tolist() == [[[1, 0], [0, 1]], [[-1, -1], [-1, 0]], [[0, -1], [1, -1]]]
    assert (pruned.experts, pruned.model_id) == (2, None)


def events(**more: Any) -> dict[str, Any]:
    ids = CHOSEN.reshape(-1, 2).copy()
    ids[2] = [2, 3]
    return {"requested_expert_ids": ids, "layer_index": np.tile([1, 4], 3), **more}


def test_requested_expert_ids_are_imported(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", **events(sequence_id=np.array([7, 7, 7, 7, 9, 9])))
    found = read_trace(tmp_path / "e.npz")
    assert (found.layers, found.experts, found.starts) == ((1, 4), 4, (0, 2))
    assert found.chosen[1, 0].tolist() == [2, 3]


def test_a_folder_is_read_as_sequences_labelled_by_folder(tmp_path: Path) -> None:
    for label, number in (("code", 0), ("prose", 0), ("code", 1)):
        (tmp_path / label).mkdir(exist_ok=True)
        np.savez(tmp_path / label / f"s{number}.npz", **events())
    found = read_trace(tmp_path)
    assert (found.labels, found.starts, found.tokens) == (("code", "code", "prose"), (0, 3, 6), 9)


def test_csv_of_layer_and_expert_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("layer,expert\n1,0\n1,3\n4,1\n4,2\n1,2\n4,0\n4,1\n")
    found = read_trace(path)
    assert found.chosen.tolist() == [[[0, 3], [1, 2]], [[2, -1], [0, 1]]]
    assert (found.layers, found.experts) == ((1, 4), 4)
    path.write_text("0,1\n0,2\n0,2\n0,0\n")  # one layer: a repeated expert begins the next token
    assert read_trace(path).chosen.tolist() == [[[1, 2]], [[2, 0]]]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros(3)}, "neither our arrays nor"),
        (events(layer_index=np.tile([4, 1], 3)), "do not stand in turn"),
        (events(layer_index=np.zeros(2, int)), "needs a `layer_index`"),
        ({"x": np.array([{}], object)}, "no npz file with arrays alone"),
    ],
)
def test_what_is_wrong_is_named(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(CollabError, match=words):
        read_trace(tmp_path / "bad.npz")


def damaged(path: Path, **changed: Any) -> None:
    write_trace(path, TRACE)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **arrays | changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"version": np.array(9)}, "trace version 9"),
        ({"experts": np.array(3)}, "names expert 3"),
        ({"layers": np.array([1])}, "do not go together"),
        ({"starts": np.array([0, 0])}, "do not rise from 0"),
    ],
)
def test_damage_is_named(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    damaged(tmp_path / "bad.npz", **changed)
    with pytest.raises(CollabError, match=words):
        read_trace(tmp_path / "bad.npz")


@pytest.mark.parametrize("text", ["0\n", "layer,expert\n0,x\n", "0,40000\n", ""])
def test_bad_csv(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(CollabError, match=r"bad\.csv"):
        read_trace(tmp_path / "bad.csv")


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="cannot read the trace"):
        read_trace(tmp_path / "none.npz")
    with pytest.raises(CollabError, match="has no trace in it"):
        read_trace(tmp_path)
