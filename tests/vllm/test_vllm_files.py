"""Safetensors of every dtype, read piece by piece, are what the safetensors package reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_vllm import HERE, Vllm

from collab_plugin.formats.safetensors_header import ITEM_BYTES

pytestmark = pytest.mark.slow


def test_every_dtype_whole_and_by_rows(vllm: Vllm, tmp_path: Path) -> None:
    done = vllm.run(HERE / "files_job.py", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and found["counted"]
    assert found["dtypes"] == sorted(ITEM_BYTES)
