"""vLLM as a target of `verify`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from collab_vllm.targets.hugging_face import write_folder
from collab_vllm.targets.vllm_targets import VllmTargets
from real_vllm import MODELS, Vllm

from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.engines.target import NotOfferedError
from collab_plugin.plugins.open_checkpoint import open_checkpoint

TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")


@pytest.mark.parametrize("model", ["tiny-qwen3moe", "tiny-deepseek-v3"])
def test_the_folder_made_of_a_gguf_is_the_original(model: str, tmp_path: Path) -> None:
    gguf = as_gguf(open_checkpoint(MODELS / model), 1)
    write_folder(gguf, tmp_path / "model", memory=10**12)
    made = json.loads((tmp_path / "model" / "config.json").read_text())
    config = json.loads((MODELS / model / "config.json").read_text())
    differ = {key for key in made if key in config and made[key] != config[key]} - {"torch_dtype", "rms_norm_eps"}
    assert not differ
    # Without a tokenizer it is no checkpoint of ours; with it, it reads like the original.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).symlink_to(MODELS / model / name)
    ours, original = open_checkpoint(tmp_path / "model"), open_checkpoint(MODELS / model)
    assert set(ours.tensors) == set(original.tensors)
    for name, info in original.tensors.items():
        expert = 0 if len(info.shape) == 3 else None
        np.testing.assert_array_equal(ours.read(name, expert=expert), original.read(name, expert=expert), name)


def test_a_folder_that_memory_cannot_hold_is_not_offered(tmp_path: Path) -> None:
    with pytest.raises(NotOfferedError, match=r"takes 0\.1 GB, half of memory is less"):
        write_folder(as_gguf(open_checkpoint(MODELS / "tiny-qwen3moe"), 1), tmp_path / "model", memory=100_000_000)
    assert not (tmp_path / "model").exists()


def test_an_architecture_without_a_table_is_not_offered(tmp_path: Path) -> None:
    from small_models.tiny_moe import write_qwen3moe

    path = write_qwen3moe(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"qwen3moe", b"qwen9moe"))
    with pytest.raises(NotOfferedError, match="qwen9moe is not translated for vLLM"):
        write_folder(path, tmp_path / "model", memory=10**12)


def test_why_there_is_no_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COLLAB_VLLM", raising=False)
    (info,) = VllmTargets().find()
    assert info.absent is not None
    assert info.absent.startswith("vLLM is not installed here: ")
    monkeypatch.setenv("COLLAB_VLLM", str(tmp_path / "python"))
    (info,) = VllmTargets().find()
    assert info.absent == (
        f"COLLAB_VLLM is {tmp_path / 'python'}, which is no program; give the Python of vLLM's environment"
    )
    monkeypatch.setenv("COLLAB_VLLM", "/bin/false")
    (info,) = VllmTargets().find()
    assert info.absent == "vLLM's Python /bin/false cannot load it: exit code 1"


@pytest.mark.slow
def test_vllm_passes_the_short_suite(vllm: Vllm) -> None:
    command = [*TOOL, "verify", "--suite", "--short", "--target", "vllm:cpu", "--json"]
    environment = os.environ | {"COLLAB_VLLM": str(vllm.python)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (target,) = json.loads(done.stdout)["targets"]
    assert target["verdict"] == "pass"
    figures = target["figures"]
    # Float32 against float64: far below what activations quantized to 8 bits cost llama.cpp.
    assert {name: value for name, value in figures.items() if name.endswith("logits.nmse") and value > 1e-11} == {}
    assert sum(name.endswith("logits.nmse") for name in figures) == 2
    assert {name for name in figures if name.startswith("kernels.mul_mat_id.")} >= {
        "kernels.mul_mat_id.Q4_K", "kernels.mul_mat_id.IQ2_XXS", "kernels.mul_mat_id.IQ3_S", "kernels.mul_mat_id.F16",
    }  # fmt: skip
