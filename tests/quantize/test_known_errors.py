from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from small_models.benches import Bench

from collab_plugin.quantize.error import ErrorTable
from collab_plugin.quantize.known_errors import KnownErrors, error_key

TENSORS = {"output.weight": ("Q8_0", "Q4_K"), "token_embd.weight": ("Q8_0",)}
VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)
VECTOR = np.ones(4, np.float32)


def untold(done: float, total: float | None = None) -> None: ...


def table(bench: Bench, known: KnownErrors, seen: list[float]) -> ErrorTable:
    return ErrorTable(
        bench.checkpoint, {}, None, bench.kernels, 1, lambda done, total=None: seen.append(done), known=known
    )


def test_a_second_plan_measures_nothing(softmax: Bench, tmp_path: Path) -> None:
    known, first, second = KnownErrors(tmp_path / "folder" / "errors.sqlite"), [], []
    measured = table(softmax, known, first).measure(TENSORS)
    assert first == [1, 2, 3]
    assert table(softmax, known, second).measure(TENSORS) == measured
    assert second == []


def test_what_is_new_is_measured(softmax: Bench, tmp_path: Path) -> None:
    known, seen = KnownErrors(tmp_path / "errors.sqlite"), []
    table(softmax, known, []).measure({"output.weight": ("Q8_0",)})
    found = table(softmax, known, seen).measure(TENSORS)
    assert seen == [1, 2]
    assert found == table(softmax, KnownErrors(tmp_path / "other.sqlite"), []).measure(TENSORS)


@pytest.mark.parametrize(
    "other",
    [
        error_key("ggml 2", "Q8_0", [(VALUES, VECTOR)]),
        error_key("ggml 1", "Q4_0", [(VALUES, VECTOR)]),
        error_key("ggml 1", "Q8_0", [(VALUES + 1, VECTOR)]),
        error_key("ggml 1", "Q8_0", [(VALUES.reshape(1, 8), VECTOR)]),
        error_key("ggml 1", "Q8_0", [(VALUES, VECTOR * 2)]),
        error_key("ggml 1", "Q8_0", [(VALUES, None)]),
        error_key("ggml 1", "Q8_0", [(VALUES, VECTOR), (VALUES, VECTOR)]),
    ],
)
def test_a_key_holds_all_that_an_error_depends_on(other: bytes) -> None:
    same = [error_key("ggml 1", "Q8_0", [(VALUES.copy(), VECTOR.copy())]) for _ in range(2)]
    assert same[0] == same[1] != other


def test_a_broken_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "errors.sqlite"
    path.write_bytes(b"no database" * 100)
    known = KnownErrors(path)
    assert known.find([b"k"]) == {}
    known.keep({b"k": 0.5})
    assert known.find([b"k"]) == {}


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = KnownErrors(tmp_path / "file" / "errors.sqlite")
    known.keep({b"k": 0.5})
    assert known.find([b"k"]) == {}


def test_the_file_does_not_grow_forever(tmp_path: Path) -> None:
    known = KnownErrors(tmp_path / "errors.sqlite", most=3)
    known.keep({b"a": 0.1, b"b": 0.2})
    known.keep({b"c": 0.3})
    assert known.find([b"a", b"c"]) == {b"a": 0.1, b"c": 0.3}
    known.keep({b"d": 0.4})
    assert known.find([b"a", b"d"]) == {b"d": 0.4}


@pytest.mark.parametrize("value", ["text", None, b"bytes", -1.0, 1e300])
def test_what_no_measurement_gives_is_not_known(tmp_path: Path, value: object) -> None:
    known, key = KnownErrors(tmp_path / "errors.sqlite"), error_key("ggml 1", "Q8_0", [(VALUES, VECTOR)])
    known.keep({key: 0.5})
    assert known.find([key]) == {key: 0.5}
    with contextlib.closing(sqlite3.connect(tmp_path / "errors.sqlite")) as file, file:
        file.execute("DROP TABLE errors")
        file.execute("CREATE TABLE errors (key BLOB PRIMARY KEY, error) WITHOUT ROWID")
        file.execute("INSERT INTO errors VALUES (?, ?)", (key, value))
    assert known.find([key]) == {}
