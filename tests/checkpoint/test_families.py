"""Each family that becomes a GGUF: a tiny random checkpoint by transformers, its logits, and llama.cpp's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance.torch_python import compute, torch_python
from small_models.converted import EXPERTS, KEPT, TOKENS, as_gguf, llama_cpp_logits, make_checkpoints, nmse
from small_models.hand_made_plans import pruned

from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint

_GROUPED: dict[str, Any] = {"num_experts": EXPERTS, "moe_intermediate_size": 32}
_MLA = {
    "kv_lora_rank": 64, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1,
}  # fmt: skip
_QWEN2: dict[str, Any] = {**_GROUPED, "shared_expert_intermediate_size": 48, "norm_topk_prob": False}
CASES: dict[str, dict[str, Any]] = {
    "qwen3-moe": {"config": "Qwen3MoeConfig", "keys": {**_GROUPED, "head_dim": 32, "norm_topk_prob": True}},
    "qwen2-moe": {"config": "Qwen2MoeConfig", "keys": _QWEN2},
    "qwen2-moe-fused": {"config": "Qwen2MoeConfig", "keys": _QWEN2, "fused": True},
    "olmoe": {
        "config": "OlmoeConfig",
        "keys": {"num_experts": EXPERTS, "num_key_value_heads": 4, "norm_topk_prob": False},
    },
    "mixtral": {"config": "MixtralConfig", "keys": {"num_local_experts": EXPERTS, "head_dim": 48}},
    "deepseek-v3": {"config": "DeepseekV3Config", "keys": _MLA, "dense": 1},
}
# With transformers' own values for keys that config.json leaves out.
_LEFT_OUT = ["norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group", "rms_norm_eps", "rope_parameters"]
_GROUPS = {"n_group": 8, "topk_group": 4, "n_routed_experts": 16}
WHOLE: dict[str, dict[str, Any]] = {
    "deepseek-v3-left-out": {
        "config": "DeepseekV3Config", "keys": _MLA | _GROUPS, "dense": 1, "left_out": _LEFT_OUT, "whole": True,
    },
    "qwen2-moe-left-out": {
        "config": "Qwen2MoeConfig", "keys": _QWEN2, "whole": True,
        "left_out": ["norm_topk_prob", "qkv_bias", "rms_norm_eps", "rope_parameters", "hidden_act"],
    },
    "mixtral-left-out": {
        "config": "MixtralConfig", "keys": {"num_local_experts": EXPERTS, "head_dim": 48}, "whole": True,
        "left_out": ["rope_parameters", "rms_norm_eps"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoints(torch_python("transformers"), tmp_path_factory.mktemp("families"), CASES | WHOLE)


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kept", [None, KEPT], ids=["original", "pruned"])
def test_llama_cpp_gives_the_logits_of_transformers(
    made: Path, case: str, kept: tuple[int, ...] | None, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(made / case / "model")
    expected = {name: np.load(made / case / f"{name}.npy") for name in ("original", "pruned")}
    found = llama_cpp_logits(as_gguf(checkpoint, tmp_path / "model.gguf", kept))
    assert nmse(expected["pruned" if kept else "original"], found) < 1e-6
    assert nmse(expected["original"], expected["pruned"]) > 1e-3, "pruning changed nothing, so nothing was compared"
    assert checkpoint.notes == ()


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("case", WHOLE)
def test_keys_left_out_of_config_json(made: Path, case: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(made / case / "model")
    found = llama_cpp_logits(as_gguf(checkpoint, tmp_path / "model.gguf", None))
    assert nmse(np.load(made / case / "original.npy"), found) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_reference_gives_the_logits_of_transformers(made: Path, case: str, tmp_path: Path) -> None:
    gguf = as_gguf(open_checkpoint(made / case / "model"), tmp_path / "model.gguf", None)
    found = compute(gguf, TOKENS, tmp_path / "out.npz")
    assert nmse(np.load(made / case / "original.npy"), found["logits"]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_pruned_folder_holds_what_the_pruned_gguf_holds(made: Path, case: str, tmp_path: Path) -> None:
    if case == "deepseek-v3":
        kept: tuple[int, ...] = (0, 2, 5, 7)  # two of each group
    else:
        kept = KEPT
    checkpoint = open_checkpoint(made / case / "model")
    gguf = open_checkpoint(as_gguf(checkpoint, tmp_path / "model.gguf", kept))
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    folder = tmp_path / "folder"
    compress_folder(checkpoint, plan, folder, precision="original", threads=1, report=lambda done, total=None: None)
    ours = open_checkpoint(folder)
    assert set(ours.tensors) == set(gguf.tensors)
    for name in ours.tensors:
        np.testing.assert_array_equal(ours.read(name), gguf.read(name), err_msg=name)
