"""The suite as shipped: every type is in it, its files are those of the manifest, and anyone can make it again."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from collab_conformance.measures import nmse
from collab_conformance.pack.pack_artifact import describe
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.suite.manifest import HERE, SuiteArtifact, read_suite
from collab_conformance.suite.suite_subjects import suite_subjects
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from make_suite import RECIPES, build
from small_models.torch_python import compute

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.plan_file import plan_fingerprint, read_plan

SUITE = read_suite()
MOST_BYTES = 25 * 10**6


@pytest.fixture(params=SUITE.artifacts, ids=lambda artifact: str(artifact.name))
def artifact(request: pytest.FixtureRequest) -> SuiteArtifact:
    found: SuiteArtifact = request.param
    return found


def _gguf(artifact: SuiteArtifact) -> Path:
    return HERE / artifact.name / f"{artifact.name}.gguf"


def test_every_type_is_met_in_experts_and_in_other_matrices() -> None:
    experts: set[str] = set()
    others: set[str] = set()
    for artifact in SUITE.artifacts:
        for info in open_gguf(_gguf(artifact)).tensors.values():
            if info.role == Role.EXPERT:
                experts.add(info.type.name)
            elif len(info.shape) > 1:
                others.add(info.type.name)
    assert experts == set(TYPES) - {"F32"}
    assert others == set(TYPES)


def test_both_families_with_and_without_groups() -> None:
    found = {name: value.value for a in SUITE.artifacts for name, value in open_gguf(_gguf(a)).metadata.items()}
    assert {k for k in found if k.endswith("expert_used_count")} == {
        "qwen3moe.expert_used_count",
        "deepseek2.expert_used_count",
    }
    groups = ["deepseek2.expert_group_count" in open_gguf(_gguf(a)).metadata for a in SUITE.artifacts]
    assert sorted(groups) == [False, False, False, True]


def test_files_are_those_of_the_manifest(artifact: SuiteArtifact) -> None:
    pack = read_pack(HERE / artifact.name / "pack").document
    described = describe(_gguf(artifact))
    assert (described.sha256, described.bytes) == (artifact.sha256, artifact.bytes)
    assert pack.artifact == described
    assert pack.tensors_sha256 == artifact.pack_sha256
    assert pack.recorder.kind == "reference"
    assert pack.routing
    plan = read_plan(HERE / artifact.name / "plan.json")
    assert described.plan_fingerprint == plan_fingerprint(plan)
    assert described.types == {name: tensor.type for name, tensor in plan.tensors.items()}
    assert described.kept == plan.pruning.kept
    assert (described.expert_count, described.experts_used) == (plan.pruning.expert_count, plan.activation.used)


def test_packs_have_scale_directions_of_every_layer(artifact: SuiteArtifact) -> None:
    scales = read_pack(HERE / artifact.name / "pack").scales
    assert scales is not None
    assert "output.weight" in scales.directions


def test_nothing_else_is_shipped() -> None:
    folders = [path for path in HERE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(path.name for path in folders) == sorted(a.name for a in SUITE.artifacts)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    names = {"plan.json", "pack.json", "pack.safetensors", "scales.safetensors"}
    assert {path.name for path in files} == names | {_gguf(a).name for a in SUITE.artifacts}
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_subjects() -> None:
    everything, short = suite_subjects(), suite_subjects(short=True)
    assert [s.name for s in everything] == [a.name for a in SUITE.artifacts]
    assert [s.name for s in short] == [a.name for a in SUITE.artifacts if a.short]
    assert all(Path(s.artifact).is_file() and Path(s.pack, "pack.json").is_file() for s in everything)
    architectures = {describe(Path(s.artifact)).architecture for s in short}
    assert architectures == {"qwen3moe", "deepseek2"}


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match=r"make it with conformance/make_suite\.py"):
        read_suite(tmp_path)


@pytest.mark.slow
def test_reference_computes_what_the_pack_has(artifact: SuiteArtifact, tmp_path: Path) -> None:
    pack = read_pack(HERE / artifact.name / "pack")
    index = [prompt.name for prompt in pack.document.prompts].index("tile")
    prompt, recording = pack.document.prompts[index], pack.recordings[index]
    found = compute(_gguf(artifact), prompt.tokens, tmp_path / "out.npz")
    assert nmse(found["logits"][list(prompt.positions)], recording.logits) < 1e-12
    assert recording.routes is not None
    for number in range(len(found["layers"])):
        assert (found[f"{number}.ids"] == recording.routes.ids[number]).all()


@pytest.mark.slow
def test_anyone_can_make_the_artifacts_again(tmp_path: Path) -> None:
    kernels = GgmlKernels()
    for recipe in RECIPES:
        build(recipe, tmp_path / recipe.name, kernels)
        made, shipped = (folder / recipe.name / f"{recipe.name}.gguf" for folder in (tmp_path, HERE))
        assert json.loads((tmp_path / recipe.name / "plan.json").read_text())["tensors"]
        if sha256(made.read_bytes()).digest() == sha256(shipped.read_bytes()).digest():
            continue
        # Another processor or compiler rounds a few scales otherwise; types, shapes and keys are the same.
        one, other = open_gguf(made), open_gguf(shipped)
        assert {n: (i.type, i.shape) for n, i in one.tensors.items()} == {
            n: (i.type, i.shape) for n, i in other.tensors.items()
        }
        for name in one.tensors:
            assert nmse(other.read(name), one.read(name)) < 1e-3, name
