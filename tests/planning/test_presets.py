"""The table of llama-quantize's mixtures, against the program itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.planning.presets import PRESETS, preset_types
from collab_plugin.stats.stats import ImatrixEntry, Stats
from collab_plugin.stats.stats_file import write_stats

WIDTH = 256
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
LATENT = ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output")
OTHERS = ("attn_qkv", "attn_kv_b")  # of other families; the program looks at names alone
EXPERTS = ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps")
SHARED = ("ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp")


@dataclass(frozen=True)
class _Model:
    """``dense``: layers before those with experts. ``odd``: the attention's row width."""

    architecture: str
    layers: int
    experts: int
    heads: tuple[int, int]
    parts: tuple[str, ...]
    dense: int = 0
    tied: bool = False
    odd: int = WIDTH


MODELS: Mapping[str, _Model] = {
    "deep": _Model("qwen3moe", 48, 16, (8, 2), (*ATTENTION, *EXPERTS)),
    "wide heads": _Model("qwen3moe", 24, 16, (8, 4), (*ATTENTION, *OTHERS, *EXPERTS), tied=True),
    "eight experts": _Model("qwen3moe", 32, 8, (8, 2), (*ATTENTION, *EXPERTS)),
    "shared experts": _Model("deepseek2", 27, 32, (4, 1), (*LATENT, *EXPERTS, *SHARED), dense=2),
    "rows of 64": _Model("qwen3moe", 4, 16, (4, 4), (*ATTENTION, *EXPERTS), odd=64),
}


def _write(path: Path, model: _Model) -> None:
    """A file with the names, the metadata and the row widths of a model, and hardly a weight."""
    writer = GGUFWriter(path, model.architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(WIDTH)
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_expert_count(model.experts)
    writer.add_expert_used_count(2)
    writer.add_head_count(model.heads[0])
    writer.add_head_count_kv(model.heads[1])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(64)
    if model.architecture == "deepseek2":
        writer.add_leading_dense_block_count(model.dense)
        writer.add_q_lora_rank(WIDTH)
        writer.add_kv_lora_rank(WIDTH)
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_scale(1.0)
    names = {"token_embd": 2} | ({} if model.tied else {"output": 2})
    for layer in range(model.layers):
        for part in model.parts:
            experts = 2 if "ffn" not in part or "shexp" in part else model.experts
            plain = part.replace("_exps", "") if layer < model.dense else part
            if layer >= model.dense or "shexp" not in part:
                names[f"blk.{layer}.{plain}"] = experts if plain == part else 2
    for name, leading in names.items():
        width = model.odd if "attn" in name else WIDTH
        shape = (leading, 2, width) if "_exps" in name else (2, width)
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _program(tools: Path, file: Path, preset: str, imatrix: Path | None) -> dict[str, str]:
    """Type by tensor that llama-quantize would write."""
    options = ["--dry-run"] if imatrix is None else ["--dry-run", "--imatrix", str(imatrix)]
    done = subprocess.run(
        [tools / "llama-quantize", *options, file, preset, "1"], check=True, capture_output=True, text=True
    )
    found = re.findall(r"^\[ *\d+/ *\d+\] +(\S+) .* MiB \((\w+)\)$", done.stdout + done.stderr, re.MULTILINE)
    return {name: kind.upper() for name, kind in found}


@pytest.mark.parametrize("model", MODELS)
def test_every_preset_is_the_programs(model: str, llama_tools: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    _write(file, MODELS[model])
    checkpoint = open_gguf(file)
    for preset in PRESETS:
        found = _program(llama_tools, file, preset, None)
        assert found, preset
        assert preset_types(checkpoint, preset, imatrix=False) == found, preset


@pytest.mark.parametrize("model", ["deep", "shared experts"])
def test_rules_that_ask_for_an_importance_matrix(model: str, llama_tools: Path, tmp_path: Path) -> None:
    file, matrix = tmp_path / "model.gguf", tmp_path / "imatrix.gguf"
    _write(file, MODELS[model])
    checkpoint = open_gguf(file)
    entry = ImatrixEntry(np.ones((1, WIDTH), np.float32), np.ones(1, np.float32))
    write_stats(matrix, Stats({}, {"blk.0.attn_output.weight": entry}, 512, 512))
    for preset in ("IQ3_XXS", "IQ4_XS", "Q4_K_M"):
        found = _program(llama_tools, file, preset, matrix)
        assert preset_types(checkpoint, preset, imatrix=True) == found, preset
