"""Hugging Face folders: FP8 with block scales, MTP layers, shards, and what a broken download looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as T
from small_models.hf_folder import (
    HIDDEN,
    Tensor,
    bf16,
    deepseek,
    deepseek_layer,
    f32,
    qwen,
    raw_safetensors,
    safetensors_bytes,
    write_folder,
)

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint

EXPERT = "model.layers.1.mlp.experts.2.gate_proj.weight"


def values_of(t: Tensor) -> np.ndarray:
    if t.dtype == "F32":
        return np.frombuffer(t.data, "<f4").reshape(t.shape)
    return (np.frombuffer(t.data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(t.shape)


# -- FP8 E4M3 with 128 × 128 block scales


def e4m3(code: int) -> float:
    """One float8 by the letter of the format (OCP 8-bit floating point, E4M3)."""
    sign, exponent, mantissa = code >> 7, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    size = (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


def _fp8(
    tensors: dict[str, Tensor], rng: np.random.Generator, block: tuple[int, int] = (128, 128)
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """The linear layers at FP8, as DeepSeek ships them, and their exact values in float64."""
    codes_without_nan = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    table = np.array([e4m3(c) for c in range(256)])
    exact, found = {}, dict(tensors)
    for name, t in tensors.items():
        if not name.endswith("_proj.weight") and "kv_a_proj" not in name:
            continue
        rows, columns = t.shape
        codes = rng.choice(codes_without_nan, t.shape)
        scale = rng.uniform(1e-4, 3e-3, (-(-rows // block[0]), -(-columns // block[1]))).astype(np.float32)
        found[name] = Tensor("F8_E4M3", t.shape, codes.tobytes())
        found[f"{name}_scale_inv"] = f32(scale)
        grid = np.kron(scale.astype(np.float64), np.ones(block))[:rows, :columns]
        exact[name] = table[codes] * grid
    return found, exact


@pytest.fixture(scope="session")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    found, exact = _fp8(tensors, np.random.default_rng(5))
    return write_folder(tmp_path_factory.mktemp("fp8") / "model", config, found, shards=2), exact


def _is_nearest_bf16(got: np.ndarray, exact: np.ndarray) -> None:
    assert not (np.ascontiguousarray(got).view(np.uint32) & 0xFFFF).any()
    spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 7)
    # Half a spacing, and what float32 rounds in the product before.
    assert (np.abs(got - exact) <= spacing * (0.5 + 1e-4)).all()


def test_fp8_is_scaled_by_blocks(fp8: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, exact = fp8
    checkpoint = open_checkpoint(folder)
    experts = checkpoint.tensors["blk.1.ffn_gate_exps.weight"]
    assert experts.type == T.BF16
    assert experts.nbytes == 2 * experts.n_elements
    for part in ("gate", "up", "down"):
        for expert in range(4):
            got = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=expert)
            _is_nearest_bf16(got, exact[f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight"])
            tail = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=expert, rows=slice(125, 131))
            np.testing.assert_array_equal(tail, got[125:131])
    _is_nearest_bf16(checkpoint.read("blk.0.attn_q_a.weight"), exact["model.layers.0.self_attn.q_a_proj.weight"])
    kv = exact["model.layers.1.self_attn.kv_b_proj.weight"].reshape(2, 16 + 24, 32)
    _is_nearest_bf16(checkpoint.read("blk.1.attn_k_b.weight"), kv[:, :16].transpose(0, 2, 1))
    _is_nearest_bf16(checkpoint.read("blk.1.attn_v_b.weight"), kv[:, 16:])


@pytest.mark.parametrize("block", [(96, 96), (160, 160), (64, 32), (1, 128)])
def test_blocks_of_other_sizes(block: tuple[int, int], tmp_path: Path) -> None:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(block)}
    found, exact = _fp8(tensors, np.random.default_rng(5), block)
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, found))
    for part in ("gate", "up", "down"):
        got = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=3)
        _is_nearest_bf16(got, exact[f"model.layers.1.mlp.experts.3.{part}_proj.weight"])
        tail = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=3, rows=slice(90, 131))
        np.testing.assert_array_equal(tail, got[90:131])


@pytest.mark.parametrize("size", [96, [128], [128, 0], ["128", "128"], [128.0, 128.0]])
def test_block_size_of_nonsense(size: object, tmp_path: Path) -> None:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": size}
    assert "weight_block_size" in refused(write_folder(tmp_path / "m", config, tensors))


def test_blocks_that_are_not_those_of_config_json(tmp_path: Path) -> None:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    found, _ = _fp8(tensors, np.random.default_rng(5))
    assert "a scale for each block of 32 by 32" in refused(write_folder(tmp_path / "m", config, found))


def test_raw_bytes_are_the_values(fp8: tuple[Path, dict[str, np.ndarray]]) -> None:
    checkpoint = open_checkpoint(fp8[0])
    for name, info in checkpoint.tensors.items():
        raw = checkpoint.read_raw(name)
        assert raw.nbytes == info.nbytes, name
        if info.type == T.BF16:
            words = np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16
            np.testing.assert_array_equal(words.view(np.float32), checkpoint.read(name))


@pytest.mark.native
def test_fp8_folder_becomes_a_gguf_that_runs(fp8: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(fp8[0])
    out = tmp_path / "out.gguf"
    compress(
        checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=lambda done, total=None: None
    )
    same = open_gguf(out)
    assert sorted(same.tensors) == sorted(checkpoint.tensors)
    assert model_id(same) == model_id(checkpoint)
    for name in checkpoint.tensors:
        np.testing.assert_array_equal(same.read(name), checkpoint.read(name))
    result = CliRunner().invoke(
        main, ["run", str(out), "-p", "Once upon a time", "-n", "2", "--ctx", "64", "--threads", "1"]
    )
    assert result.exit_code == 0, result.output


def test_fp8_not_a_number(tmp_path: Path) -> None:
    config, tensors = deepseek()
    found, _ = _fp8(tensors, np.random.default_rng(5))
    broken = bytearray(found[EXPERT].data)
    broken[7] = 0x7F
    found[EXPERT] = Tensor("F8_E4M3", found[EXPERT].shape, bytes(broken))
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, found))
    with pytest.raises(CollabError, match=r"blk\.1\.ffn_gate_exps\.weight, expert 2 holds 1 values that are NaN"):
        checkpoint.read("blk.1.ffn_gate_exps.weight", expert=2)


Change = Callable[[dict[str, Tensor]], None]


def _without_scale(t: dict[str, Tensor]) -> None:
    del t[f"{EXPERT}_scale_inv"]


def _with_small_scale(t: dict[str, Tensor]) -> None:
    t[f"{EXPERT}_scale_inv"] = f32(np.ones((1, 1), np.float32))


def _other_scale_dtype(t: dict[str, Tensor]) -> None:
    t[f"{EXPERT}_scale_inv"] = Tensor("I32", (2, 2), bytes(16))


def _scale_without_fp8(t: dict[str, Tensor]) -> None:
    t[EXPERT] = bf16(np.zeros(t[EXPERT].shape, np.float32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_scale, "FP8 weights need weight_scale_inv"),
        (_with_small_scale, r"has shape \(1, 1\), \(2, 2\) is needed"),
        (_other_scale_dtype, "weight_scale_inv"),
        (_scale_without_fp8, "and only they"),
    ],
)
def test_scales_that_do_not_fit(change: Change, says: str, tmp_path: Path) -> None:
    config, tensors = deepseek()
    found, _ = _fp8(tensors, np.random.default_rng(5))
    change(found)
    with pytest.raises(CollabError, match=says):
        open_safetensors(write_folder(tmp_path / "m", config, found))


# -- what the folder holds


def test_mtp_layer_is_dropped_with_a_note(tmp_path: Path) -> None:
    config, tensors = deepseek(num_nextn_predict_layers=1)
    plain = open_safetensors(write_folder(tmp_path / "plain", config, tensors))
    rng = np.random.default_rng(6)
    p = "model.layers.2"
    extra = deepseek_layer(2, config, rng) | {
        f"{p}.eh_proj.weight": bf16(np.zeros((HIDDEN, 2 * HIDDEN), np.float32)),
        f"{p}.enorm.weight": bf16(np.ones(HIDDEN, np.float32)),
        f"{p}.hnorm.weight": bf16(np.ones(HIDDEN, np.float32)),
        f"{p}.embed_tokens.weight": tensors["model.embed_tokens.weight"],
        f"{p}.shared_head.norm.weight": bf16(np.ones(HIDDEN, np.float32)),
        f"{p}.shared_head.head.weight": tensors["lm_head.weight"],
    }
    checkpoint = open_safetensors(write_folder(tmp_path / "mtp", config, tensors | extra))
    assert list(checkpoint.tensors) == list(plain.tensors)
    assert plain.notes == ()
    assert len(checkpoint.notes) == 1
    assert "MTP layer 2 dropped" in checkpoint.notes[0]
    assert checkpoint.metadata["deepseek2.block_count"].value == 2
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "mtp"), "--json"])
    assert json.loads(result.stdout)["notes"] == list(checkpoint.notes)


@pytest.mark.parametrize("make", [deepseek, qwen])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_are_one_model(make: Callable[[], Any], shards: int, tmp_path: Path) -> None:
    config, tensors = make()
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", config, tensors, shards))
    assert checkpoint.format == "safetensors"
    topology = topology_of(checkpoint)
    layer = topology.moe_layers[-1]
    assert (topology.expert_count, topology.experts_used) == (4, 2)
    for expert in range(4):
        got = checkpoint.read(f"blk.{layer}.ffn_down_exps.weight", expert=expert)
        name = f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
        np.testing.assert_array_equal(got, values_of(tensors[name]))
    np.testing.assert_array_equal(checkpoint.read("output.weight"), values_of(tensors["lm_head.weight"]))


def test_tied_embeddings_have_no_output_matrix(tmp_path: Path) -> None:
    config, tensors = qwen(tie_word_embeddings=True)
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, tensors))
    assert "output.weight" not in checkpoint.tensors


def test_routers_and_norms_are_float32(tmp_path: Path) -> None:
    """As llama.cpp expects them; the values are those stored."""
    config, tensors = deepseek()
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, tensors))
    for name, source in {
        "blk.1.ffn_gate_inp.weight": "model.layers.1.mlp.gate.weight",
        "blk.1.exp_probs_b.bias": "model.layers.1.mlp.gate.e_score_correction_bias",
        "blk.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
    }.items():
        assert checkpoint.tensors[name].type == T.F32
        np.testing.assert_array_equal(checkpoint.read(name), values_of(tensors[source]))
    assert checkpoint.tensors["blk.1.ffn_up_exps.weight"].type == T.BF16


# -- broken downloads


def refused(folder: Path) -> str:
    """The one line of an error, which the command prints and nothing else."""
    with pytest.raises(CollabError) as error:
        open_checkpoint(folder)
    message = str(error.value)
    assert "\n" not in message
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines() == [f"error: {' '.join(message.split())}"]
    return message


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", "sub/../../x.safetensors", ""])
def test_index_naming_a_file_outside(name: str, tmp_path: Path) -> None:
    config, tensors = qwen()
    folder = write_folder(tmp_path / "m", config, tensors, shards=2)
    (tmp_path / "outside.safetensors").write_bytes(safetensors_bytes(tensors))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside the folder" in refused(folder)


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen(), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "shard missing: model-00002-of-00003.safetensors" in refused(folder)


def test_index_promising_more(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen(), shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "promises 'model.extra.weight'" in refused(folder)


@pytest.mark.parametrize("index", ["[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "\xff"])
def test_index_of_nonsense(index: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen(), shards=2)
    (folder / "model.safetensors.index.json").write_text(index, "latin-1")
    assert "model.safetensors.index.json" in refused(folder)


def test_tensor_in_two_files(tmp_path: Path) -> None:
    config, tensors = qwen()
    folder = write_folder(tmp_path / "m", config, tensors)
    (folder / "second.safetensors").write_bytes(safetensors_bytes({"lm_head.weight": tensors["lm_head.weight"]}))
    assert "'lm_head.weight' is in two files" in refused(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.experts.3.up_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ],
)
def test_tensor_missing(name: str, tmp_path: Path) -> None:
    config, tensors = deepseek()
    del tensors[name]
    refused(write_folder(tmp_path / "m", config, tensors))


def test_one_expert_too_many(tmp_path: Path) -> None:
    config, tensors = deepseek()
    tensors["model.layers.1.mlp.experts.4.up_proj.weight"] = tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    assert "expert 4 is missing or too many" in refused(write_folder(tmp_path / "m", config, tensors))


def test_experts_of_two_shapes(tmp_path: Path) -> None:
    config, tensors = deepseek()
    tensors[EXPERT] = bf16(np.zeros((8, HIDDEN), np.float32))
    message = refused(write_folder(tmp_path / "m", config, tensors))
    assert f"{EXPERT} has the shape [8, 192], by" in message
    assert "it is [160, 192]" in message


def test_experts_of_two_types(tmp_path: Path) -> None:
    config, tensors = deepseek()
    tensors[EXPERT] = f32(np.zeros(tensors[EXPERT].shape, np.float32))
    assert "differ in shape or dtype" in refused(write_folder(tmp_path / "m", config, tensors))


def test_unknown_tensor(tmp_path: Path) -> None:
    config, tensors = qwen()
    tensors["model.layers.0.self_attn.novelty.weight"] = tensors["model.norm.weight"]
    assert "'model.layers.0.self_attn.novelty.weight' has no name in GGUF" in refused(
        write_folder(tmp_path / "m", config, tensors)
    )


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


def test_files_of_macos_are_passed_over(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen())
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7" + bytes(4092))
    checkpoint = open_safetensors(folder)
    assert checkpoint.notes == (
        "passed over ._model.safetensors: macOS writes such files, they are no part of the model",
    )


def test_groups_that_cannot_be_routed(tmp_path: Path) -> None:
    config, tensors = deepseek(n_group=3)
    result = CliRunner().invoke(main, ["inspect", str(write_folder(tmp_path / "m", config, tensors))])
    assert result.exit_code == 2
    assert "4 experts in 3 groups" in result.stderr


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "[1]", "{", "\xff\xfe", '"text"', "[" * 100_000])
def test_json_of_nonsense(name: str, content: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen())
    (folder / name).write_text(content, "latin-1")
    assert name in refused(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen())
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(folder)


def test_no_weights(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen())
    (folder / "model.safetensors").unlink()
    refused(folder)


# -- headers that lie

GOOD = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


def _one(**changes: Any) -> bytes:
    return json.dumps({"t": GOOD | changes}).encode()


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\1" * 7, "shorter than its header"),
    "header past the end": (raw_safetensors(b"{}", size=3), "claims a header of 3 bytes"),
    "huge header": (raw_safetensors(b"{}", size=2**63), "claims a header of"),
    "not JSON": (raw_safetensors(b"{nope}"), "not JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "not JSON"),
    "a list": (raw_safetensors(b"[]"), "no JSON object"),
    "deep": (raw_safetensors(b"[" * 50_000), "not JSON"),
    "a huge number": (raw_safetensors(b'{"t": ' + b"9" * 5000 + b"}"), "safetensors file"),
    "name twice": (
        raw_safetensors(b'{"t": %b, "t": %b}' % (json.dumps(GOOD).encode(), json.dumps(GOOD).encode()), bytes(32)),
        "a name appears twice",
    ),
    "dtype twice": (
        raw_safetensors(b'{"t": {"dtype": "F32", "dtype": "F16", "shape": [8], "data_offsets": [0, 32]}}', bytes(32)),
        "a name appears twice",
    ),
    "past the end": (raw_safetensors(_one(), bytes(31)), "lies at [0, 32] in 31 bytes"),
    "starts past the end": (raw_safetensors(_one(data_offsets=[64, 96]), bytes(32)), "lies at [64, 96]"),
    "offsets reversed": (raw_safetensors(_one(data_offsets=[32, 0]), bytes(32)), "lies at [32, 0]"),
    "negative offset": (raw_safetensors(_one(data_offsets=[-32, 0]), bytes(32)), "no lists of numbers"),
    "three offsets": (raw_safetensors(_one(data_offsets=[0, 32, 32]), bytes(32)), "lies at"),
    "offset as text": (raw_safetensors(_one(data_offsets=["0", "32"]), bytes(32)), "no lists of numbers"),
    "offset as truth": (raw_safetensors(_one(data_offsets=[False, 32]), bytes(32)), "no lists of numbers"),
    "fractional offset": (raw_safetensors(_one(data_offsets=[0.5, 32]), bytes(32)), "no lists of numbers"),
    "size disagrees": (raw_safetensors(_one(shape=[2, 5]), bytes(40)), "do not agree"),
    "other dtype": (raw_safetensors(_one(dtype="BF16"), bytes(32)), "do not agree"),
    "unknown dtype": (raw_safetensors(_one(dtype="F12"), bytes(32)), "unknown dtype 'F12'"),
    "dtype is a number": (raw_safetensors(_one(dtype=32), bytes(32)), "unknown dtype"),
    "shape overflows": (raw_safetensors(_one(shape=[2**40, 2**40, 2**40]), bytes(32)), "do not agree"),
    "negative shape": (raw_safetensors(_one(shape=[-2, -4]), bytes(32)), "no lists of numbers"),
    "shape as text": (raw_safetensors(_one(shape="24"), bytes(32)), "no lists of numbers"),
    "nothing": (raw_safetensors(b'{"t": null}', bytes(32)), "has no dtype, shape and data_offsets"),
    "more than is known": (raw_safetensors(_one(extra=1), bytes(32)), "has no dtype, shape and data_offsets"),
    "overlap": (
        raw_safetensors(json.dumps({"a": GOOD, "b": GOOD | {"data_offsets": [16, 48]}}).encode(), bytes(48)),
        "overlaps another",
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_header_that_lies(what: str, tmp_path: Path) -> None:
    data, says = LIES[what]
    folder = write_folder(tmp_path / "m", *qwen())
    (folder / "model.safetensors").write_bytes(data)
    message = refused(folder)
    assert says in message
    assert "model.safetensors" in message


def test_truncated_shard(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes of data" in refused(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    config, tensors = deepseek()
    values = values_of(tensors[EXPERT]).copy()
    values[3, 4] = value
    tensors[EXPERT] = bf16(values)
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, tensors))
    with pytest.raises(CollabError, match=r"blk\.1\.ffn_gate_exps\.weight, expert 2 holds 1 values"):
        checkpoint.read("blk.1.ffn_gate_exps.weight", expert=2)
    assert np.isfinite(checkpoint.read("blk.1.ffn_gate_exps.weight", expert=1)).all()
