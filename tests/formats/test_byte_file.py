"""Files read by ranges."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import Bytes, Cursor, LocalFile
from collab_plugin.formats.safetensors_header import Stored


def _file(path: Path, size: int = 300_000) -> tuple[LocalFile, bytes]:
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    path.write_bytes(data)
    return LocalFile(path), data


def test_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data = _file(tmp_path / "f")
    for start, stop in ((0, 0), (0, 300_000), (17, 4711), (299_999, 300_000)):
        assert file.read(start, stop).tobytes() == data[start:stop]
    monkeypatch.delattr(os, "preadv")  # as on Windows
    assert file.read(17, 4711).tobytes() == data[17:4711]


def test_a_file_that_was_cut_meanwhile(tmp_path: Path) -> None:
    file, _ = _file(tmp_path / "f")
    os.truncate(tmp_path / "f", 1000)
    assert len(file.read(0, 1000)) == 1000
    with pytest.raises(CollabError, match="ends at 1,000 bytes and had 300,000"):
        file.read(500, 1500)


def test_a_cursor_reads_little_more_than_it_gives(tmp_path: Path) -> None:
    file, data = _file(tmp_path / "f")
    read: list[int] = []

    class Counted(LocalFile):
        def read(self, start: int, stop: int) -> Bytes:
            read.append(stop - start)
            return super().read(start, stop)

    cursor = Cursor(Counted(tmp_path / "f"))
    assert cursor.take(4) + cursor.take(0) + cursor.take(96) == data[:100]
    assert sum(read) == Cursor.FIRST
    assert cursor.take(250_000) == data[100:250_100]
    assert cursor.left == 49_900
    assert cursor.take(49_900) == data[250_100:]
    assert sum(read) == file.size


def test_rows_of_what_is_stored(tmp_path: Path) -> None:
    file, data = _file(tmp_path / "f", 1000)
    whole = np.frombuffer(data[100:340], np.uint8)
    stored = Stored("t", "BF16", (5, 4, 6), file, 100, 340)
    np.testing.assert_array_equal(stored.read(), whole.reshape(5, 4, 12))
    np.testing.assert_array_equal(stored.read(slice(1, 3)), whole.reshape(5, 4, 12)[1:3])
    np.testing.assert_array_equal(stored.read(slice(4, 9)), whole.reshape(5, 4, 12)[4:])
    assert stored.read(slice(3, 3)).shape == (0, 4, 12)
    vector = Stored("v", "F32", (60,), file, 100, 340)
    np.testing.assert_array_equal(vector.read(slice(2, 4)), whole[8:16])
    scalar = Stored("s", "F32", (), file, 100, 104)
    np.testing.assert_array_equal(scalar.read(), whole[:4])
