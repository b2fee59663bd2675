"""The Hugging Face cache: a snapshot's files are links to blobs outside it; a link may also lead nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_models.hf_folder import qwen, write_folder

from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.plugins.open_checkpoint import open_checkpoint


def _snapshot(folder: Path) -> Path:
    """models--x/{blobs,snapshots/<commit>}, as huggingface_hub lays it out."""
    plain = write_folder(folder / "plain", *qwen(), shards=2)
    blobs, snapshot = folder / "cache" / "blobs", folder / "cache" / "snapshots" / "0f1e2d"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(plain.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


def test_a_snapshot_of_links_is_read(tmp_path: Path) -> None:
    linked = open_checkpoint(_snapshot(tmp_path))
    plain = open_safetensors(write_folder(tmp_path / "again", *qwen(), shards=2))
    assert model_id(linked) == model_id(plain)
    assert list(linked.tensors) == list(plain.tensors)
    name = "blk.0.ffn_up_exps.weight"
    np.testing.assert_array_equal(linked.read(name), plain.read(name))


@pytest.mark.parametrize("target", ["../../blobs/gone", "model-00001-of-00002.safetensors"], ids=["nowhere", "itself"])
def test_a_link_that_leads_nowhere(target: str, tmp_path: Path) -> None:
    """An interrupted download leaves a link without its blob."""
    snapshot = _snapshot(tmp_path)
    link = snapshot / "model-00001-of-00002.safetensors"
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(CollabError, match=r"shard missing: model-00001-of-00002\.safetensors"):
        open_checkpoint(snapshot)
    result = CliRunner().invoke(main, ["inspect", str(snapshot)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_link_to_a_folder(name: str, tmp_path: Path) -> None:
    snapshot = _snapshot(tmp_path)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(tmp_path)
    with pytest.raises(CollabError) as error:
        open_checkpoint(snapshot)
    assert "\n" not in str(error.value)
