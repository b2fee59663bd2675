"""Models in folders of stores that fsspec opens, and on web servers."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pytest
from small_models.hand_made_plans import pruned
from small_models.hf_folder import qwen, write_folder
from small_models.hub_server import hub_server

from collab_plugin.checkpoint.files.store_files import StoreFiles, _StoreFile
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint, open_safetensors
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_folder(tmp_path / "m", *qwen(), shards=2)


def test_a_folder_of_a_store(folder: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/bucket/model", recursive=True)
    far, near = open_checkpoint("memory://bucket/model"), open_safetensors(folder)
    assert isinstance(far, SafetensorsCheckpoint)
    assert far.notes[0] == "read from memory://bucket/model"
    for name in near.tensors:
        np.testing.assert_array_equal(far.read_raw(name), near.read_raw(name))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    whole = far.local()
    assert sorted(p.name for p in whole.glob("*.safetensors")) == sorted(p.name for p in folder.glob("*.safetensors"))
    assert list(open_safetensors(whole).tensors) == list(near.tensors)
    store.pipe("/bucket/model/config.json", b"{}")
    with pytest.raises(CollabError, match="is a None"):
        open_checkpoint("memory://bucket/model")  # not what was fetched before
    store.rm("/bucket", recursive=True)
    with pytest.raises(CollabError, match="no files at memory://bucket/model"):
        open_checkpoint("memory://bucket/model")


def test_pruned_experts_of_a_store_are_never_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/pruned/model", recursive=True)
    ranges: list[tuple[str, int, int]] = []
    fetch = _StoreFile.fetch

    def recorded(self: _StoreFile, start: int, stop: int) -> bytes:
        ranges.append((self.where, start, stop))
        return fetch(self, start, stop)

    monkeypatch.setattr(_StoreFile, "fetch", recorded)
    far = open_checkpoint("memory://pruned/model")
    assert isinstance(far, SafetensorsCheckpoint)
    kept, out = (3, 1), tmp_path / "out.gguf"
    compress(far, pruned(far, copy_plan(far), kept), None, out, kernels=None, threads=1, report=untold)
    read = {(start, stop) for _, start, stop in ranges}
    for name, info in far.tensors.items():
        if info.role == Role.EXPERT:
            for expert, matrix in enumerate(far.stored(name)):
                part = matrix.parts[0]
                assert ((part.start, part.stop) in read) == (expert in kept), (name, expert)
            made, source = open_checkpoint(out).read_raw(name), open_safetensors(folder).read_raw(name)
            np.testing.assert_array_equal(made, source[list(kept)])
    store.rm("/pruned", recursive=True)


def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/full/model", recursive=True)

    def full(self: object, there: str, here: str) -> None:
        Path(here).write_bytes(b"{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(store), "get_file", full)
    with pytest.raises(CollabError, match=r"^no space to copy memory://full/model to .*: free some$"):
        open_checkpoint("memory://full/model")
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".partial"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_checkpoint("memory://full/model").tensors == open_safetensors(folder).tensors
    store.rm("/full", recursive=True)


def test_a_gguf_of_a_store(qwen3moe: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(qwen3moe), "/ggufs/m.gguf")
    far = open_checkpoint("memory://ggufs/m.gguf")
    name = "blk.0.ffn_up_exps.weight"
    np.testing.assert_array_equal(far.read_raw(name, expert=2), open_checkpoint(qwen3moe).read_raw(name, expert=2))
    assert open_checkpoint("memory://ggufs").tensors == far.tensors
    store.rm("/ggufs", recursive=True)


def test_a_web_server_that_lists_nothing(folder: Path) -> None:
    with hub_server({"org/m": folder}) as hub:
        far = open_checkpoint(f"{hub.endpoint}/org/m/resolve/main")
        near = open_safetensors(folder)
        name = "blk.0.ffn_up_exps.weight"
        np.testing.assert_array_equal(far.read(name, expert=1), near.read(name, expert=1))
        assert far.tensors == near.tensors
        with pytest.raises(CollabError, match="no files at"):
            open_checkpoint(f"{hub.endpoint}/org/m/resolve/v9")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere://x/y", "no store is called nowhere://"),
        ("memory://nothing/here", "no files at memory://nothing/here"),
        pytest.param(
            "s3://bucket/m",
            "^s3://bucket/m needs a package that is not installed: .*s3fs",
            marks=pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed"),
        ),
    ],
)
def test_mistakes(address: str, says: str) -> None:
    with pytest.raises(CollabError, match=says):
        StoreFiles(address)
