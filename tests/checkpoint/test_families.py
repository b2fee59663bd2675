"""Each family that becomes a GGUF: a tiny random checkpoint by transformers, its logits, llama.cpp's, our reference's,
and the GGUF that llama.cpp's own converter makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_models.compared_families import ComparedFamily, compare_families
from small_models.family_cases import CASES, KEPT, VOCABULARY, WHOLE
from small_models.hand_made_plans import pruned
from small_models.torch_python import torch_python

from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.native]
FAR = 1e-6  # of the variance of transformers' logits, all in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def compared(folder: Path, llama_converter: Path | None) -> dict[str, ComparedFamily]:
    return compare_families(torch_python("transformers"), folder, CASES | WHOLE, llama_converter)


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_logits_of_transformers(compared: dict[str, ComparedFamily], case: str) -> None:
    found = compared[case]
    far = CASES[case].get("far", FAR)
    assert found.original is not None and found.original < far
    assert found.pruned is not None and found.pruned < far
    assert found.changed is not None and found.changed > 1e-3, "pruning changed nothing, so nothing was compared"
    assert found.notes == CASES[case].get("notes", ())


@pytest.mark.parametrize("case", WHOLE)
def test_keys_left_out_of_config_json(compared: dict[str, ComparedFamily], case: str) -> None:
    found = compared[case].original
    assert found is not None and found < FAR


@pytest.mark.parametrize("case", CASES)
def test_the_reference_gives_the_logits_of_transformers(compared: dict[str, ComparedFamily], case: str) -> None:
    found = compared[case].reference
    if found is None:
        pytest.skip("the family has no reference")
    assert found < FAR


@pytest.mark.parametrize("case", CASES)
def test_the_converter_of_llama_cpp_makes_the_same(compared: dict[str, ComparedFamily], case: str) -> None:
    found, told = compared[case], CASES[case]
    if found.differences is None and found.why_not is None:
        pytest.skip("llama.cpp's converter is not here: make native")
    assert (found.why_not or "").startswith(told.get("why_not", "")) and bool(found.why_not) == ("why_not" in told)
    assert found.why_not or found.differences == tuple(told.get("unlike", ()))


@pytest.mark.parametrize("case", CASES)
def test_a_pruned_folder_holds_what_the_pruned_gguf_holds(
    compared: dict[str, ComparedFamily], folder: Path, case: str, tmp_path: Path
) -> None:
    kept = CASES[case].get("kept", KEPT)
    checkpoint = open_checkpoint(folder / case / "model")
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    out = tmp_path / "folder"
    if refused := CASES[case].get("no_folder"):
        with pytest.raises(CollabError, match=refused):
            compress_folder(
                checkpoint, plan, out, precision="original", threads=1, report=lambda done, total=None: None
            )
        return
    compress_folder(checkpoint, plan, out, precision="original", threads=1, report=lambda done, total=None: None)
    ours = open_checkpoint(out)
    assert ours.notes == checkpoint.notes
    assert set(ours.tensors) == set(checkpoint.tensors)
    for name, info in checkpoint.tensors.items():
        expected = checkpoint.read(name)
        if info.by_expert and info.layer is not None and info.layer in plan.pruning.kept:
            expected = expected[list(plan.pruning.kept[info.layer])]
        np.testing.assert_array_equal(ours.read(name), expected, err_msg=name)


def test_tokens_that_end_a_turn_of_glm(compared: dict[str, ComparedFamily], folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "glm4-moe" / "model", model)
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|user|>"))
    (model / "tokenizer_config.json").unlink()  # it names the token that is gone
    metadata = open_checkpoint(model).metadata
    assert metadata["tokenizer.ggml.eot_token_id"].value == VOCABULARY - 1
    assert "tokenizer.ggml.eom_token_id" not in metadata, "no such token is in the vocabulary"
