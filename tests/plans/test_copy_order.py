"""Artifacts are a fixed point of llama-quantize COPY, which Ollama runs on every file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from small_models.hand_made_plans import pruned

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.formats.gguf_layout import copy_order
from collab_plugin.plans.copy_plan import copy_plan


def test_layers_by_number_then_names() -> None:
    names = ["output.weight", "blk.10.a", "blk.2.b", "blk.2.a", "a.weight"]
    keys, tensors = copy_order(["general.file_type", "x", "general.quantization_version", "a"], names)
    assert keys == ["x", "a", "general.quantization_version", "general.file_type"]
    assert tensors == ["a.weight", "output.weight", "blk.2.a", "blk.2.b", "blk.10.a"]


@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2"])
def test_copy_writes_the_same_bytes(
    model: str, llama_tools: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = open_gguf(request.getfixturevalue(model))
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    plan = pruned(checkpoint, copy_plan(checkpoint), (0, 2, 3))
    compress(checkpoint, plan, None, ours, kernels=None, threads=1, report=lambda done, total=None: None)
    command = [llama_tools / "llama-quantize", "--allow-requantize", ours, theirs, "COPY", "1"]
    subprocess.run(command, check=True, capture_output=True)
    assert ours.read_bytes() == theirs.read_bytes()
    # Not by chance: the source is in another order, and COPY changes it.
    subprocess.run(
        [*command[:2], checkpoint.path, tmp_path / "copy.gguf", *command[4:]], check=True, capture_output=True
    )
    assert (tmp_path / "copy.gguf").read_bytes() != checkpoint.path.read_bytes()
