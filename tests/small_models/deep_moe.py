"""A random model that is deep and else as small as can be: 61 layers, as DeepSeek-V3 has, four million weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from small_models.tiny_moe import F32, _finish, _matrix, _start

LAYERS = 61
WIDTH = 64
EXPERTS = 8


def write_deep_qwen3moe(path: Path) -> Path:
    """qwen3moe that llama.cpp runs; its vocabulary is `tiny_moe`'s."""
    rng = np.random.default_rng(0)
    writer = _start(path, "qwen3moe", EXPERTS, LAYERS, WIDTH)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_rope_dimension_count(16)
    ones = np.ones(WIDTH, np.float32)
    tensors: dict[str, F32] = {
        "token_embd.weight": _matrix(rng, 288, WIDTH) * 8,
        "output_norm.weight": ones,
        "output.weight": _matrix(rng, 288, WIDTH),
    }
    for layer in range(LAYERS):
        b = f"blk.{layer}"
        tensors |= {
            f"{b}.attn_norm.weight": ones,
            f"{b}.ffn_norm.weight": ones,
            f"{b}.attn_q.weight": _matrix(rng, WIDTH, WIDTH),
            f"{b}.attn_k.weight": _matrix(rng, 32, WIDTH),
            f"{b}.attn_v.weight": _matrix(rng, 32, WIDTH),
            f"{b}.attn_output.weight": _matrix(rng, WIDTH, WIDTH),
            f"{b}.attn_q_norm.weight": np.ones(16, np.float32),
            f"{b}.attn_k_norm.weight": np.ones(16, np.float32),
            f"{b}.ffn_gate_inp.weight": _matrix(rng, EXPERTS, WIDTH) * 2,
            **{f"{b}.ffn_{part}_exps.weight": _matrix(rng, EXPERTS, WIDTH, WIDTH) for part in ("gate", "up", "down")},
        }
    _finish(writer, tensors)
    return path
