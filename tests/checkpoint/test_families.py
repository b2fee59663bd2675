"""Each family that becomes a GGUF: a tiny random checkpoint by transformers, its logits, llama.cpp's, our reference's,
and the GGUF that llama.cpp's own converter makes. And defaults of config.json's keys, which are transformers'."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models.compared_families import ComparedFamily, compare_families
from small_models.family_cases import CASES, KEPT, VOCABULARY, WHOLE
from small_models.hand_made_plans import pruned
from small_models.torch_python import torch_python
from tokenizers import Tokenizer

from collab_plugin.checkpoint.compare_tokens import PROBE, check_tokens
from collab_plugin.checkpoint.families.builtin_families import FAMILIES
from collab_plugin.checkpoint.families.family import Conversion
from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.native]
FAR = 1e-6  # of the variance of transformers' logits, all in float32
CONVERSIONS = {family.name: family.conversion for family in FAMILIES if family.conversion}
# Keys of vLLM's and of the models' own code that transformers' class does not have: it computes just this.
_V3 = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
NOT_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "deepseek-v3": _V3,
    "deepseek-v2": {"scoring_func": "softmax", "moe_layer_freq": 1},
    "deepseek-v3.2": {**_V3, "rope_interleave": True, "num_nextn_predict_layers": 1},
    "kimi-k2.5": _V3,
    "glm4-moe-lite": {**_V3, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1},
    "deepseek-v4": {"num_hash_layers": 3},
    "hunyuan-moe": {"num_shared_expert": 1},
    "hy-v3": {"route_norm": True, "first_k_dense_replace": 1},
    "afmoe": {"route_norm": True},
    "cohere2-moe": {"first_k_dense_replace": 0},
    "step-3.5": {"norm_expert_weight": True, "moe_every_n_layer": 1, "rope_theta": 10000.0},
    "minimax-m2": {"scoring_func": "sigmoid", "use_qk_norm": True, "use_routing_bias": True},
}
# What transformers' class fills in from other keys.
_HEADS = {"num_key_value_heads": None}
FILLED_IN: dict[str, dict[str, Any]] = dict.fromkeys(
    ("granite-moe", "hunyuan-moe", "afmoe", "cohere2-moe", "granite-hybrid"), _HEADS
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def compared(folder: Path, llama_converter: Path | None) -> dict[str, ComparedFamily]:
    classes = [conversion.config_class for conversion in CONVERSIONS.values()]
    return compare_families(torch_python("transformers"), folder, CASES | WHOLE, llama_converter, classes)


@pytest.fixture(scope="module")
def of_transformers(compared: dict[str, ComparedFamily], folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "defaults.json").read_text())
    return found


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


def test_every_architecture_with_experts_is_read_or_has_a_reason(llama_converter: Path | None) -> None:
    """Of the pinned llama.cpp, by the tensors that its converter knows."""
    with (Path(__file__).parents[2] / "docs" / "unread_architectures.csv").open(newline="") as file:
        unread = [row["architecture"] for row in csv.DictReader(file)]
    read = {family.architecture for family in FAMILIES if family.conversion}
    assert unread == sorted(set(unread) - read)
    if llama_converter is None:
        pytest.skip("llama.cpp's converter is not here: make native")
    pinned = runpy.run_path(str(llama_converter / "gguf-py" / "gguf" / "constants.py"))
    experts = {pinned["MODEL_TENSOR"].FFN_UP_EXP, pinned["MODEL_TENSOR"].FFN_GATE_UP_EXP}
    names = {pinned["MODEL_ARCH_NAMES"][arch] for arch, has in pinned["MODEL_TENSORS"].items() if experts & set(has)}
    assert names == read | set(unread)


TOKENIZE = """
import json, sys
import llama_cpp
llama = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
print(json.dumps([llama.tokenize(t.encode(), add_bos=False, special=True) for t in json.load(sys.stdin)]))
"""


def test_llama_cpp_gives_the_tokens_of_gemma(compared: dict[str, ComparedFamily], folder: Path, tmp_path: Path) -> None:
    model, texts = folder / "gemma4" / "model", [*PROBE, "so<eos>that\n\n\n<|channel>"]
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(folder / "gemma4" / "whole.gguf")],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert json.loads(done.stdout) == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    metadata = open_checkpoint(model).metadata
    data = json.loads((model / "tokenizer.json").read_text())
    data["model"]["merges"] = data["model"]["merges"][::-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CollabError, match="the GGUF would make"):
        check_tokens(tmp_path, metadata)


def test_tokens_that_end_a_turn_of_glm(compared: dict[str, ComparedFamily], folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "glm4-moe" / "model", model)
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|user|>"))
    (model / "tokenizer_config.json").unlink()  # it names the token that is gone
    metadata = open_checkpoint(model).metadata
    assert metadata["tokenizer.ggml.eot_token_id"].value == VOCABULARY - 1
    assert "tokenizer.ggml.eom_token_id" not in metadata, "no such token is in the vocabulary"


@pytest.mark.parametrize("name", CONVERSIONS)
def test_defaults_are_those_of_transformers(name: str, of_transformers: dict[str, dict[str, Any]]) -> None:
    conversion, own = CONVERSIONS[name], NOT_TRANSFORMERS.get(name, {})
    theirs = of_transformers[conversion.config_class] | FILLED_IN.get(name, {})
    assert own.keys() & theirs.keys() == set()
    assert dict(conversion.defaults) == own | {key: theirs[key] for key in conversion.defaults if key not in own}


def keys_asked_for(conversion: Conversion) -> set[str]:
    return {key.config for key in conversion.keys if isinstance(key.config, str)} | set(conversion.fixed)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_keys_without_a_default_are_sizes_or_empty(name: str, of_transformers: dict[str, dict[str, Any]]) -> None:
    """What changes the computation without changing a shape may be left out of config.json, and so has a default."""
    conversion = CONVERSIONS[name]
    theirs = of_transformers[conversion.config_class]
    sizes = {
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "n_routed_experts"),
        *("num_experts", "num_local_experts", "moe_num_experts"),
    }
    without = keys_asked_for(conversion) - conversion.defaults.keys() - sizes
    assert [key for key in sorted(without) if theirs.get(key) not in (None, [])] == []
