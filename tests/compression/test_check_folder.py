"""`inspect --check` of a folder: what differs from the plan and the source is told, and what is right is left alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_models.hand_made_plans import pruned, typed_plan
from small_models.hf_folder import MODELS

import collab_plugin as cp
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.compression.hf_folder import PLAN_FILE, FolderPrecision, compress_folder
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.formats.safetensors_header import read_header
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.progress import untold

KEPT = (2, 3, 8, 11, 16, 17, 25, 30)
EXPERT = "model.layers.1.mlp.experts.2.down_proj.weight"


@dataclasses.dataclass(frozen=True)
class Made:
    """A pruned folder of two models, at the plan's precision or the stored one."""

    source: Path
    plan: cp.Plan
    plan_path: Path
    out: Path


@pytest.fixture(scope="module", params=[("tiny-qwen3moe", "original"), ("tiny-deepseek-v3", "plan")])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    model, precision = request.param
    folder = tmp_path_factory.mktemp("checked")
    checkpoint = open_safetensors(MODELS / model)
    plan = pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q4_K"), KEPT)
    write_plan(folder / "plan.json", plan)
    chosen: FolderPrecision = precision
    compress_folder(checkpoint, plan, folder / "out", precision=chosen, threads=1, report=untold, shard_bytes=2_000_000)
    return Made(MODELS / model, plan, folder / "plan.json", folder / "out")


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.out, tmp_path / "copy"))


@pytest.mark.parametrize("pieces", [5, "all"])
def test_what_compress_wrote_is_right(pieces: int, made: Made) -> None:
    found = cp.check(made.out, made.plan_path, made.source, pieces=pieces, threads=1)
    assert found.problems == ()
    assert found.compared == (found.tiles if pieces == "all" else 5)
    assert cp.check(made.out, made.plan_path).problems == ()


def test_a_flipped_bit_is_found(made: Made, copy: Path) -> None:
    for path in copy.glob("*.safetensors"):
        held = read_header(LocalFile(path))
        for name in (EXPERT, f"{EXPERT}_packed"):
            if name in held:
                data = bytearray(path.read_bytes())
                data[held[name].stop - 3] ^= 1
                path.write_bytes(data)
                told = name
    found = cp.check(copy, made.plan, made.source, pieces="all", threads=1).problems
    assert len(found) == 1
    assert found[0].startswith(f"{told}, rows 0 to ")
    assert found[0].endswith(": other bytes than planned")


def test_files_that_are_not_the_sources(made: Made, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    (copy / "generation_config.json").unlink()
    (copy / "tokenizer_config.json").write_text("{}")
    (copy / PLAN_FILE).unlink()
    assert cp.check(copy, made.plan, made.source, pieces=1, threads=1).problems == (
        "it has no collab_plan.json, so it does not say what plan it was made by",
        "config.json has another rope_theta than the plan makes of the source",
        "generation_config.json is missing",
        "tokenizer_config.json is not the source's",
    )


def test_another_plan(made: Made, tmp_path: Path) -> None:
    checkpoint = open_safetensors(made.source)
    other = pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q4_K"), KEPT[:4])
    alone = cp.check(made.out, other).problems
    assert alone[0] == "it was made by another plan"
    assert any(problem.endswith("has 8 experts, the plan keeps 4") for problem in alone)
    found = cp.check(made.out, other, made.source, threads=1)
    assert found.compared == 0
    assert any(problem.startswith("model.layers.1.mlp.experts.7.") for problem in found.problems)


def test_the_command_and_its_mistakes(made: Made) -> None:
    arguments = ["inspect", "--check", str(made.out), "--plan", str(made.plan_path), str(made.source), "--pieces", "9"]
    done = CliRunner().invoke(main, [*arguments, "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "is as the plan says" in done.stdout
    with pytest.raises(CollabError, match="`stats`, `samples` and `kernels` are for GGUF files"):
        cp.check(made.out, made.plan, made.source, stats="stats.gguf")
