"""What adapters find of `make native`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from collab_plugin.engines.native_builds import native_builds


def test_newest_first_and_no_unfinished_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native_builds("llama") == ()
    base = tmp_path / "collab-plugin" / "llama"
    for age, name in enumerate(("old", "new", "part.abcd")):
        (base / name).mkdir(parents=True)
        os.utime(base / name, (1000 + age, 1000 + age))
    (base / "notes.txt").write_text("")
    assert [path.name for path in native_builds("llama")] == ["new", "old"]
