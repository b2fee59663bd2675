"""config.json of a Hugging Face folder, held against its tensors and what llama.cpp computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_models.hf_folder import (
    deepseek,
    qwen,
    write_folder,
)
from small_models.refused_folder import refused

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": None},
        {"architectures": "DeepseekV3ForCausalLM"},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 0},
        {"n_routed_experts": 0},
        {"n_routed_experts": 8},
        {"n_routed_experts": None},
        {"kv_lora_rank": 1.5},
        {"num_attention_heads": 3},
        {"vocab_size": 100},
        {"rope_scaling": {"type": "dynamic", "factor": 2}},
        {"rope_scaling": [1]},
        {"rms_norm_eps": "small"},
    ],
)
def test_config_that_does_not_fit(changes: dict[str, Any], tmp_path: Path) -> None:
    config, tensors = deepseek()
    refused(write_folder(tmp_path / "m", config | changes, tensors))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; llama.cpp's deepseek2 computes 'silu'"),
        ({"rope_interleave": False}, "rope_interleave = 'False'"),
        ({"attention_bias": True}, "attention_bias = 'True'"),
        ({"moe_layer_freq": 2}, "moe_layer_freq = '2'"),
        ({"topk_method": "group_limited_greedy"}, "topk_method = 'group_limited_greedy'"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy' and n_group = 2"),
        ({"scoring_func": "tanh"}, "scoring_func = 'tanh'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 2}}, "scales rope with 'attention_factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 1.0, "mscale_all_dim": 0.7}}, "they must be equal"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob = 'yes', neither true nor false"),
        ({"n_group": "two"}, "n_group = 'two', not a whole number"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    config, tensors = deepseek()
    assert says in refused(write_folder(tmp_path / "m", config | changes, tensors))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_sliding_window": True}, "use_sliding_window = 'True'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = 'True'"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers = '[0]'"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = '2'"),
        ({"norm_topk_prob": False}, "does not renormalise router weights"),
    ],
)
def test_what_llama_cpp_does_not_compute_of_qwen_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    config, tensors = qwen()
    assert says in refused(write_folder(tmp_path / "m", config | changes, tensors))


def test_keys_left_out_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    config, tensors = deepseek(n_routed_experts=16, n_group=8, topk_group=4)
    for key in ("norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group", "scoring_func", "topk_method"):
        del config[key]
    metadata = open_safetensors(write_folder(tmp_path / "deepseek", config, tensors)).metadata
    expected = {
        "weights_norm": True, "weights_scale": 2.5, "group_count": 8, "group_used_count": 4, "gating_func": 2,
    }  # fmt: skip
    assert {key: metadata[f"deepseek2.expert_{key}"].value for key in expected} == expected
    config, tensors = qwen()
    del config["norm_topk_prob"]
    message = refused(write_folder(tmp_path / "qwen", config, tensors))
    assert "does not renormalise router weights (norm_topk_prob is False)" in message


def test_expert_counts_under_two_keys(tmp_path: Path) -> None:
    config, tensors = qwen()
    same = open_safetensors(write_folder(tmp_path / "same", config | {"num_local_experts": 4}, tensors))
    assert same.metadata["qwen3moe.expert_count"].value == 4
    message = refused(write_folder(tmp_path / "other", config | {"num_local_experts": 8}, tensors))
    assert "has num_experts = 4 and num_local_experts = 8: they must be equal" in message
    del config["num_experts"]
    alone = open_safetensors(write_folder(tmp_path / "alone", config | {"num_local_experts": 4}, tensors))
    assert alone.metadata == same.metadata | {"general.name": alone.metadata["general.name"]}


def test_key_that_nobody_reads_is_noted(tmp_path: Path) -> None:
    config, tensors = qwen()
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config | {"new_trick": 3, "use_cache": True}, tensors))
    assert checkpoint.notes == ("config.json has keys that are not known here and were not read: new_trick",)


SIZES = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads", "q_lora_rank",
         "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts",
         "vocab_size", "first_k_dense_replace", "num_hidden_layers")  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("change", [-1, 1])
def test_sizes_of_deepseek_are_held_against_its_tensors(key: str, change: int, tmp_path: Path) -> None:
    config, tensors = deepseek(n_group=1, topk_group=1)
    refused(write_folder(tmp_path / "m", config | {key: config[key] + change}, tensors))


QWEN_SIZES = ("hidden_size", "moe_intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
              "num_experts", "vocab_size", "num_hidden_layers")  # fmt: skip


@pytest.mark.parametrize("key", QWEN_SIZES)
@pytest.mark.parametrize("change", [-1, 1])
def test_sizes_of_qwen_are_held_against_its_tensors(key: str, change: int, tmp_path: Path) -> None:
    config, tensors = qwen(num_hidden_layers=2)
    refused(write_folder(tmp_path / "m", config | {key: config[key] + change}, tensors))


def test_shape_that_does_not_fit_is_told_with_the_one_expected(tmp_path: Path) -> None:
    config, tensors = deepseek()
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    folder = write_folder(tmp_path / "m", config | {"v_head_dim": 32}, tensors)
    assert refused(folder) == (
        f"{name} has the shape [80, 32], by {folder}/config.json it is [96, 32] (heads*key_and_value rank)"
    )


def test_layer_behind_the_decoder_is_not_taken_for_prediction(tmp_path: Path) -> None:
    config, tensors = qwen(num_hidden_layers=2)
    message = refused(write_folder(tmp_path / "qwen", config | {"num_hidden_layers": 1}, tensors))
    assert "has num_hidden_layers = 1, and layer 1 is stored: correct the number" in message
    config, tensors = deepseek(num_hidden_layers=3)
    for told, says in ((0, "num_nextn_predict_layers tells of 0"), (1, "it predicts no further tokens")):
        changes = {"num_hidden_layers": 2, "num_nextn_predict_layers": told}
        assert says in refused(write_folder(tmp_path / f"deepseek{told}", config | changes, tensors))


def test_groups_that_cannot_be_routed(tmp_path: Path) -> None:
    config, tensors = deepseek(n_group=3)
    result = CliRunner().invoke(main, ["inspect", str(write_folder(tmp_path / "m", config, tensors))])
    assert result.exit_code == 2
    assert "4 experts in 3 groups" in result.stderr
