"""Runs killed at random moments end in the bytes of a run that nobody killed (50: benchmarks/killed_runs/run.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_models.killed_runs import killed_until_done
from small_models.tiny_moe import write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.progress import untold


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are killed in forked children")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    checkpoint = open_gguf(write_qwen3moe(tmp_path / "model.gguf", experts=12))
    plan = copy_plan(checkpoint)
    compress(checkpoint, plan, None, tmp_path / "whole.gguf", kernels=None, threads=1, report=untold)
    whole, killed = (tmp_path / "whole.gguf").read_bytes(), 0
    for seed in range(3):
        out = tmp_path / f"{seed}.gguf"
        killed += killed_until_done(checkpoint, plan, out, whole, seed, seconds=0.06, most=6)
        assert out.read_bytes() == whole
        assert [path.name for path in tmp_path.glob(f"{seed}.gguf*")] == [out.name]
    assert killed > 2
