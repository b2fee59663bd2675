"""What `compress --format safetensors` quantizes is what compressed-tensors reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_vllm import HERE, MODELS, TRAINED, Vllm
from small_models.hand_made_plans import typed_plan

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.formats.tensor_names import Role

pytestmark = pytest.mark.slow


def _types(info: TensorInfo) -> str:
    if info.role == Role.EXPERT:
        return ("Q6_K", "Q5_K", "IQ2_S", "Q5_K")[info.layer or 0]
    return "Q8_0" if info.role == Role.ATTENTION and info.layer == 0 else "BF16"


def _quiet(done: float, total: float | None = None) -> None: ...


@pytest.fixture(scope="module")
def results(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compressed")
    pairs: list[Path] = []
    for model in TRAINED:
        checkpoint = open_safetensors(MODELS / model)
        plan = typed_plan(checkpoint, _types)
        compress_folder(checkpoint, plan, folder / model, precision="plan", threads=2, report=_quiet)
        pairs += [folder / model, MODELS / model]
    done = vllm.run(HERE / "compressed_tensors_job.py", *pairs)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(TRAINED, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("model", TRAINED)
def test_compressed_tensors_reads_it(model: str, results: dict[str, dict[str, Any]]) -> None:
    found = results[model]
    assert found["misjudged"] == []
    limits = {"8 bits, groups of 128": 0.008, "4 bits, groups of 32": 0.1, "4 bits, groups of 128": 0.12}
    print(found["worst"])
    assert set(found["worst"]) == set(limits)
    for kind, error in found["worst"].items():
        assert error < limits[kind]
