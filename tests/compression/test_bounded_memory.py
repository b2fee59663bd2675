"""Resident memory does not grow with the source: it is read by the range and given back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_models.hand_made_plans import pruned
from small_models.hf_folder import QWEN, config_of, raw_safetensors
from small_models.memory_limit import memory_limit

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.checkpoint.tokenizer import load_json
from collab_plugin.compression.tiles import TILE_BYTES
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan_file import write_plan

MODEL = Path(__file__).parents[1] / "models" / "tiny-qwen3moe"
HIDDEN = WIDTH = 2048
EXPERTS, THREADS = 56, 1
BOUND = 512 * 2**20 + THREADS * 4 * TILE_BYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE of one layer and 1.4 GB, all zeros, which take no room on the disk."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": HIDDEN, "moe_intermediate_size": WIDTH, "num_experts": EXPERTS}
    (folder / "config.json").write_text(json.dumps(config_of("tiny-qwen3moe", **{**QWEN, **sizes})))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(MODEL / name)
    c, p = load_json(folder / "config.json"), "model.layers.0"
    heads, kv, head = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    shapes = {
        "model.embed_tokens.weight": (c["vocab_size"], HIDDEN), "lm_head.weight": (c["vocab_size"], HIDDEN),
        "model.norm.weight": (HIDDEN,), f"{p}.input_layernorm.weight": (HIDDEN,),
        f"{p}.post_attention_layernorm.weight": (HIDDEN,), f"{p}.mlp.gate.weight": (EXPERTS, HIDDEN),
        f"{p}.self_attn.q_proj.weight": (heads * head, HIDDEN), f"{p}.self_attn.k_proj.weight": (kv * head, HIDDEN),
        f"{p}.self_attn.v_proj.weight": (kv * head, HIDDEN), f"{p}.self_attn.o_proj.weight": (HIDDEN, heads * head),
        f"{p}.self_attn.q_norm.weight": (head,), f"{p}.self_attn.k_norm.weight": (head,),
    }  # fmt: skip
    for expert in range(EXPERTS):
        for part, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH))):
            shapes[f"{p}.mlp.experts.{expert}.{part}_proj.weight"] = shape
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    start = raw_safetensors(json.dumps(header).encode())
    (folder / "model.safetensors").write_bytes(start)
    os.truncate(folder / "model.safetensors", len(start) + at)
    return folder


@pytest.mark.slow
def test_compress_stays_below_the_bound(folder: Path, tmp_path: Path) -> None:
    """Half of the experts are kept: more is read and written than the bound would hold.

    Measured everywhere, and under a limit that counts the page cache too where a system lets us set one.
    """
    checkpoint = open_safetensors(folder)
    plan = pruned(checkpoint, copy_plan(checkpoint), range(0, EXPERTS, 2))
    assert plan.bytes > BOUND
    write_plan(tmp_path / "plan.json", plan)
    command = ["-m", "collab_plugin", "compress", str(folder), "--plan", str(tmp_path / "plan.json"), "--json"]
    with memory_limit(BOUND) as join:
        done = subprocess.run(
            [sys.executable, *command, "--threads", str(THREADS), "-o", str(tmp_path / "out.gguf")],
            preexec_fn=join,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)["peak_memory"]
    assert peak < BOUND
    assert (tmp_path / "out.gguf").stat().st_size == plan.bytes
    (tmp_path / "out.gguf").unlink()
