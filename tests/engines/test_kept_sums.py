"""A calibration that goes on: what is kept, when, and for which calibration it counts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from collab_plugin.engines.unfinished_calibration import AT_MOST, UnfinishedCalibration, calibration_key
from collab_plugin.errors import CollabError


class Total:
    """A sum whose order of additions shows in its last bits."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.total, self._seconds = np.zeros(3), seconds

    def add(self, window: int) -> None:
        self.total += np.random.default_rng(window).random(3)

    def state(self) -> dict[str, NDArray[Any]]:
        time.sleep(self._seconds)
        return {"total": self.total}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.total = arrays["total"]


def _run(path: Path, windows: range, total: Total, key: str = "mine") -> int:
    """Run all windows but the kept ones; where it began."""
    kept = UnfinishedCalibration(str(path), key, 0)
    first = kept.resume(total)
    for window in windows[first:]:
        total.add(window)
        kept.keep(total, window + 1)
    return first


def test_it_goes_on_to_the_same_sums(tmp_path: Path) -> None:
    path, whole, later = tmp_path / "kept", Total(), Total()
    assert _run(tmp_path / "whole", range(100), whole) == 0
    assert _run(path, range(37), Total()) == 0
    (tmp_path / "kept.new").write_bytes(b"half of a file")
    assert _run(path, range(100), later) == 37
    assert later.total.tolist() == whole.total.tolist()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept", "whole"]


@pytest.mark.parametrize("damage", ["cut", "one byte", "empty", "of another program", "of another calibration"])
def test_what_does_not_count(damage: str, tmp_path: Path) -> None:
    path, total = tmp_path / "kept", Total()
    _run(path, range(5), Total())
    kept = path.read_bytes()
    changed = bytearray(kept)
    changed[kept.index(np.array(5).tobytes() + b"PK")] = 6
    contents = {"cut": kept[:-100], "one byte": bytes(changed), "empty": b"", "of another program": b"something else"}
    path.write_bytes(contents.get(damage, kept))
    assert _run(path, range(7), total, "another" if damage == "of another calibration" else "mine") == 0
    whole = Total()
    _run(tmp_path / "whole", range(7), whole)
    assert total.total.tolist() == whole.total.tolist()


def test_without_a_file_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = UnfinishedCalibration("", "mine", 0)
    assert kept.resume(Total()) == 0
    kept.keep(Total(), 1)
    assert not list(tmp_path.iterdir())


def test_it_is_kept_when_it_is_time(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    UnfinishedCalibration(str(path), "mine", 3600).keep(Total(), 1)
    assert not path.exists(), "not before"
    seconds = 0.05
    slow, kept = Total(seconds), UnfinishedCalibration(str(path), "mine", 1e-3)
    time.sleep(2e-3)
    begun = time.monotonic()
    kept.keep(slow, 1)
    while UnfinishedCalibration(str(path), "mine", 0).resume(Total()) == 1:
        kept.keep(slow, 2)
        time.sleep(0.01)
    assert time.monotonic() - begun >= seconds / AT_MOST, "a twentieth of the time at most"


@pytest.mark.skipif(os.name == "nt", reason="limits sizes of files")
def test_a_full_disk_is_one_line_and_leaves_what_was_kept(tmp_path: Path) -> None:
    import resource

    path, total = tmp_path / "kept", Total()
    _run(path, range(5), total)
    total.total = np.zeros(10**6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    try:
        with pytest.raises(CollabError, match=f"no space for {path}"):
            UnfinishedCalibration(str(path), "mine", 0).keep(total, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    assert _run(path, range(5), Total()) == 5


def test_keys_tell_calibrations_apart(tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    model.write_bytes(b"1234")
    other.write_bytes(b"1234")
    os.utime(other, ns=(0, model.stat().st_mtime_ns))
    first, second = np.arange(4), np.arange(4, 8)

    def key(
        engine: str = "engine 1", file: Path = model, windows: tuple[NDArray[np.int64], ...] = (first, second),
        options: object = (1, "f16"),
    ) -> str:  # fmt: skip
        return calibration_key(engine, [file], windows, options)

    mine = key()
    assert mine == key()
    others = [
        key(engine="engine 2"),
        key(file=other),
        key(windows=(second, first)),
        key(windows=(first,)),
        key(windows=(np.arange(8),)),
        key(windows=(np.arange(2), np.arange(2, 4), second)),
        key(options=(2, "f16")),
    ]
    model.write_bytes(b"12345")
    others.append(key())
    model.write_bytes(b"1234")
    os.utime(model, ns=(0, 0))
    others.append(key())
    assert len({mine, *others}) == 1 + len(others)
