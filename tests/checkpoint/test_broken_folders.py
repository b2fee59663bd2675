"""What a broken download looks like: one line of an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models.hf_folder import (
    EXPERT,
    HIDDEN,
    bf16,
    deepseek,
    f32,
    qwen,
    safetensors_bytes,
    values_of,
    write_folder,
)
from small_models.refused_folder import refused

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.errors import CollabError


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
