"""Models in folders of stores that fsspec opens, and on web servers."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from small_models.hf_folder import qwen, write_folder
from small_models.hub_server import hub_server

from collab_plugin.checkpoint.files.store_files import StoreFiles
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint, open_safetensors
from collab_plugin.errors import CollabError
from collab_plugin.plugins.open_checkpoint import open_checkpoint


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
    ],
)
def test_mistakes(address: str, says: str) -> None:
    with pytest.raises(CollabError, match=says):
        StoreFiles(address)
