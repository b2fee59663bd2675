"""Weights that are not finite stop a calibration in one line; none reach the statistics."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from engine_calls import calibrate

from collab_plugin.checkpoint.gguf import open_shard
from collab_plugin.errors import CollabError


def test_not_a_number_in_the_weights(qwen3moe: Path, prose: Path, tmp_path: Path) -> None:
    """A NaN reaches the activations; the run stops instead of writing NaN into the statistics."""
    broken = tmp_path / "nan.gguf"
    shutil.copy(qwen3moe, broken)
    header, _ = open_shard(broken)
    with broken.open("r+b") as file:
        file.seek(header.tensors["blk.0.attn_v.weight"].offset)
        file.write(np.full(256, np.nan, np.float32).tobytes())
    with pytest.raises(CollabError, match="finite"):
        calibrate(broken, prose, chunks=1)
