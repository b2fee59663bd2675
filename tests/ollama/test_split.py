"""Split artifacts: both ways of creating take all shards, and Ollama merges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_ollama import Running, collab, mistake
from small_models.gguf_copies import write_split

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(qwen3moe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = write_split(qwen3moe, tmp_path_factory.mktemp("split"), 10)
    assert len(found) == 3
    return found


def test_shards_become_one_model(shards: list[Path], server: Running, tmp_path: Path) -> None:
    place = ("--host", server.url, "--models", server.models)
    done = collab("ollama", "create", shards[1], "--name", "split", *place, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["source_digests"]) == 3
    assert result["digest"] not in result["source_digests"]
    assert not result["linked"]
    assert "merged the 3 shards" in result["notes"][0]
    # The links to the shards are gone again.
    assert server.left_behind() == []
    assert all(path.stat().st_nlink == 1 for path in shards)
    done = collab("export", "ollama", shards[0], "--name", "split-file", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "Modelfile").read_text()
    assert [line for line in text.splitlines() if line.startswith("FROM")] == [f"FROM {path}" for path in shards]
    done = server.run("create", "split-file", "-f", str(tmp_path / "Modelfile"))
    assert done.returncode == 0, done.stderr
    both = [server.client.show(name) for name in ("split", "split-file")]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].blob == both[1].blob == result["digest"]
    request = {"prompt": "th", "raw": True, "options": {"num_predict": 8, "temperature": 0, "num_thread": 1}}
    assert (
        len({server.client.generate({"model": name, **request})["response"] for name in ("split", "split-file")}) == 1
    )


def test_shard_missing(shards: list[Path], server: Running, tmp_path: Path) -> None:
    for path in (shards[0], shards[2]):
        (tmp_path / path.name).symlink_to(path)
    done = collab("ollama", "create", tmp_path / shards[0].name, "--name", "part", "--host", server.url)
    assert f"shard missing: {shards[1].name}" in mistake(done)
