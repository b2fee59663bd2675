"""Each family that becomes a GGUF: a tiny random checkpoint by transformers, its logits, and llama.cpp's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance.torch_python import torch_python
from small_models.converted import EXPERTS, KEPT, as_gguf, llama_cpp_logits, make_checkpoints, nmse

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoints(torch_python("transformers"), tmp_path_factory.mktemp("families"), CASES)


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
