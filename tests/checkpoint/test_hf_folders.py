"""What a sound Hugging Face folder holds: shards, MTP layers, tied embeddings."""

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
    bf16,
    deepseek,
    deepseek_layer,
    qwen,
    values_of,
    write_folder,
)

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.cli.main import main
from collab_plugin.plugins.open_checkpoint import open_checkpoint


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


def test_files_of_macos_are_passed_over(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", *qwen())
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7" + bytes(4092))
    checkpoint = open_safetensors(folder)
    assert checkpoint.notes == (
        "passed over ._model.safetensors: macOS writes such files, they are no part of the model",
    )
