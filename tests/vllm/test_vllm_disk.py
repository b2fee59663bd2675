"""Weights are read by the range, and the disk gives no more than that. Needs no vLLM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from collab_vllm.load.range_reader import AHEAD, Range, RangeReader, merged

from collab_plugin.errors import CollabError

PIECE = 64 * 1024


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "file"
    path.write_bytes(os.urandom(AHEAD + 8 * 2**20))
    return path


def test_ranges_are_what_the_file_holds(file: Path) -> None:
    whole = file.read_bytes()
    ranges = [(5, 5 + PIECE), (5 + PIECE, 7 + PIECE), (3 * PIECE, 3 * PIECE), (2**20, len(whole)), (0, 3)]
    with RangeReader(file, ranges) as reader:
        for start, stop in ranges:
            buffer = bytearray(stop - start)
            reader.read_into(start, memoryview(buffer))
            assert buffer == whole[start:stop]


def test_neighbours_become_one() -> None:
    assert merged([(4, 6), (0, 2), (2, 3), (3, 3), (5, 9)]) == [(4, 6), (0, 3), (5, 9)]


def test_a_file_that_ends_early(file: Path) -> None:
    end = file.stat().st_size
    with RangeReader(file, [(end - 4, end + 4)]) as reader, pytest.raises(CollabError, match="download it again"):
        reader.read_into(end - 4, memoryview(bytearray(8)))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux says what the disk gave")
def test_every_second_piece_is_half_of_the_disk(file: Path) -> None:
    whole = [(0, file.stat().st_size)]
    half = [(start, start + PIECE) for start in range(0, file.stat().st_size, 2 * PIECE)]
    if _from_disk(file, whole) < whole[0][1]:
        pytest.skip("this file system does not say what its disk gave")
    assert _from_disk(file, half) <= sum(stop - start for start, stop in half) * 1.02


def _from_disk(file: Path, ranges: list[Range]) -> int:
    """Bytes that storage gave for reading ``ranges``, with none of them in memory before."""
    handle = os.open(file, os.O_RDONLY)
    os.fdatasync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    before = _storage_bytes()
    with RangeReader(file, ranges) as reader:
        for start, stop in ranges:
            reader.read_into(start, memoryview(bytearray(stop - start)))
    return _storage_bytes() - before


def _storage_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
