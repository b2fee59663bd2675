"""A third party's wheel, installed without the network and used from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_models.converted import llama_cpp_logits, make_checkpoints, nmse
from small_models.family_cases import EXPERTS, KEPT
from small_models.tiny_moe import some_stats
from small_models.torch_python import torch_python

from collab_plugin import LayerRouting, Stats, open_gguf, write_stats

WHEEL = Path(__file__).parent / "plugin_wheel"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built and installed wheel."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(WHEEL)], check=True, capture_output=True, timeout=120)
    return target


def collab(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("collab-plugin"), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def stats_for(model: Path, out: Path) -> Path:
    """Expert e of every layer was chosen in proportion to e + 1."""
    checkpoint = open_gguf(model)
    experts = int(checkpoint.metadata[f"{checkpoint.architecture}.expert_count"].value)
    layers = {i.layer for i in checkpoint.tensors.values() if i.by_expert and i.layer is not None}
    count = 100_000 * (1 + np.arange(experts))
    routing = LayerRouting(int(count.sum()), count, count * 0.5, count * 2.0)
    matrix = some_stats(checkpoint)
    write_stats(out, Stats(dict.fromkeys(sorted(layers), routing), matrix.imatrix, routing.tokens, matrix.chunk_size))
    return out


def test_plugins_lists_the_wheel(installed: Path) -> None:
    listed = json.loads(collab(installed, "plugins", "--json").stdout)
    options = {"most": {"default": 0, "help": "1 keeps what is used most instead"}}
    assert {"kind": "criteria", "name": "least-used", "plugin": "example", "options": options} in listed
    assert {"kind": "placement-policies", "name": "spread", "plugin": "example", "options": {}} in listed
    assert {"kind": "checkpoint-formats", "name": "zipped-gguf", "plugin": "example", "options": {}} in listed
    assert {"kind": "families", "name": "dots1", "plugin": "example", "options": {}} in listed


def test_without_the_wheel_its_criterion_is_unknown(qwen3moe: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = collab(tmp_path, "plan", qwen3moe, "--criterion", "least-used", "--budget", "4bpw", "-o", out)
    assert done.returncode == 2
    assert "unknown criterion 'least-used'" in done.stderr
    assert not out.exists()


def test_zipped_model_is_inspected_like_the_file(installed: Path, qwen3moe: Path, tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(qwen3moe, "inside/../model.gguf")
    zipped = json.loads(collab(installed, "inspect", archive, "--json").stdout)
    plain = json.loads(collab(installed, "inspect", qwen3moe, "--json").stdout)
    assert zipped["format"] == "zipped-gguf"
    assert zipped["notes"] == ["unpacked from model.zip"]
    for side in (zipped, plain):
        for key in ("format", "notes", "name"):
            side.pop(key)
    assert zipped == plain


def test_broken_archive_is_one_line(installed: Path, tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    archive.write_bytes(b"PK\x03\x04 and then nothing")
    done = collab(installed, "inspect", archive)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "broken archive" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.native
@pytest.mark.parametrize(
    ("criterion", "given", "kept"),
    [
        ("least-used", (), "lowest"),
        ("least-used", ("--criterion-option", "most=1"), "highest"),
        ("freq", (), "highest"),
    ],
)
def test_plan_with_the_wheel_s_criterion(
    installed: Path, qwen3moe: Path, tmp_path: Path, criterion: str, given: tuple[str, ...], kept: str
) -> None:
    stats, out = stats_for(qwen3moe, tmp_path / "stats.gguf"), tmp_path / "plan.json"
    experts = int(open_gguf(qwen3moe).metadata["qwen3moe.expert_count"].value)
    half = experts // 2
    options = (
        "--stats",
        stats,
        "--keep",
        half,
        "--criterion",
        criterion,
        "--budget",
        "8bpw",
        "--types",
        "Q8_0,Q4_0",
        *given,
    )
    done = collab(installed, "plan", qwen3moe, *options, "-o", out)
    assert done.returncode == 0, done.stderr
    plan = json.loads(out.read_text())
    assert plan["pruning"]["criterion"] == criterion
    expected = list(range(half)) if kept == "lowest" else list(range(half, experts))
    assert set(map(tuple, plan["pruning"]["kept"].values())) == {tuple(expected)}


DOTS1 = {
    "config": "Dots1Config",
    "dense": 1,
    "keys": {
        "n_routed_experts": EXPERTS, "n_shared_experts": 1, "moe_intermediate_size": 32, "head_dim": 32,
        "num_key_value_heads": 4, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.5,
    },
}  # fmt: skip
CONVERT = """
import sys
from pathlib import Path
from small_models.converted import as_gguf
from small_models.family_cases import KEPT
from collab_plugin import open_checkpoint
checkpoint = open_checkpoint(Path(sys.argv[1]))
for name, kept in (("original", None), ("pruned", KEPT)):
    as_gguf(checkpoint, Path(sys.argv[2]) / f"{name}.gguf", kept)
"""


@pytest.mark.slow
@pytest.mark.native
def test_a_family_of_the_wheel_becomes_a_gguf_with_the_logits_of_transformers(installed: Path, tmp_path: Path) -> None:
    made = make_checkpoints(torch_python("transformers"), tmp_path, {"dots1": DOTS1}) / "dots1"
    without = collab(tmp_path, "inspect", made / "model")
    assert "is a Dots1ForCausalLM; Hugging Face folders of " in without.stderr
    paths = os.pathsep.join((str(installed), str(Path(__file__).parents[1])))
    command = [sys.executable, "-c", CONVERT, str(made / "model"), str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=True, timeout=120)
    names = ("original", "pruned")
    for name, logits in zip(names, llama_cpp_logits(*(tmp_path / f"{name}.gguf" for name in names)), strict=True):
        assert logits is not None and nmse(np.load(made / f"{name}.npy"), logits) < 1e-6
    assert len(KEPT) < EXPERTS
