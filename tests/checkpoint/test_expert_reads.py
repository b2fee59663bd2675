"""Reading one expert reads its bytes and no other's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models.hf_folder import qwen, write_folder

from collab_plugin.checkpoint.gguf import GgufCheckpoint
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint
from collab_plugin.formats.byte_file import Bytes, LocalFile
from collab_plugin.plugins.open_checkpoint import open_checkpoint


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Ranges that are read of any file from now on."""
    found: list[tuple[int, int]] = []
    read = LocalFile.read

    def recorded(self: LocalFile, start: int, stop: int) -> Bytes:
        found.append((start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(LocalFile, "read", recorded)
    return found


@pytest.mark.parametrize("format_name", ["gguf", "safetensors"])
def test_one_expert_touches_no_other(
    format_name: str, qwen3moe: Path, tmp_path: Path, ranges: list[tuple[int, int]]
) -> None:
    checkpoint = open_checkpoint(qwen3moe if format_name == "gguf" else write_folder(tmp_path / "m", *qwen()))
    name, expert = "blk.0.ffn_up_exps.weight", 2
    if isinstance(checkpoint, GgufCheckpoint):
        stored = checkpoint._places[name].stored
        size = stored.nbytes // stored.shape[0]
        start = stored.offset + expert * size
    else:
        assert isinstance(checkpoint, SafetensorsCheckpoint)
        own = checkpoint.stored(name)[expert].parts[0]
        start, size = own.start, own.stop - own.start
    ranges.clear()
    checkpoint.read_raw(name, expert=expert)
    whole = checkpoint.read(name, expert=expert)
    assert ranges == [(start, start + size)] * 2
    ranges.clear()
    assert np.array_equal(checkpoint.read(name, expert=expert, rows=slice(5, 9)), whole[5:9])
    row = size // len(whole)
    assert ranges == [(start + 5 * row, start + 9 * row)]
