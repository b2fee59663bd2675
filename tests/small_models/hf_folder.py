"""Small Hugging Face folders written by hand: the trained folders' config and tokenizer, random weights."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODELS = Path(__file__).parents[1] / "models"
HIDDEN = 192
WIDTH = 160  # of an expert; neither is a multiple of the FP8 block of 128

EXPERT = "model.layers.1.mlp.experts.2.gate_proj.weight"


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def bf16(values: NDArray[np.float32]) -> Tensor:
    """Truncated to bfloat16."""
    words = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype("<u2")
    return Tensor("BF16", values.shape, words.tobytes())


def f32(values: NDArray[np.float32]) -> Tensor:
    return Tensor("F32", values.shape, np.ascontiguousarray(values, "<f4").tobytes())


def values_of(t: Tensor) -> NDArray[np.float32]:
    """The values of ``t``, F32 or BF16."""
    if t.dtype == "F32":
        return np.frombuffer(t.data, "<f4").reshape(t.shape)
    return (np.frombuffer(t.data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(t.shape)


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    at = 0
    for name, t in tensors.items():
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + len(t.data)]}
        at += len(t.data)
    return raw_safetensors(json.dumps(header).encode(), b"".join(t.data for t in tensors.values()))


def raw_safetensors(header: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + body


def config_of(model: str, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((MODELS / model / "config.json").read_text())
    return config | changes


DEEPSEEK = {
    "hidden_size": HIDDEN, "intermediate_size": WIDTH, "moe_intermediate_size": WIDTH, "num_hidden_layers": 2,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 24,
}  # fmt: skip
QWEN = {
    "hidden_size": HIDDEN, "moe_intermediate_size": WIDTH, "num_hidden_layers": 1, "num_experts": 4,
    "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


def _dense(prefix: str, rng: np.random.Generator) -> dict[str, Tensor]:
    shapes = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}
    return {f"{prefix}.{part}.weight": bf16(_random(rng, *shape)) for part, shape in shapes.items()}


def _random(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def deepseek_layer(layer: int, config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Tensor]:
    c, p = config, f"model.layers.{layer}"
    heads, rank = c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value, q_rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["q_lora_rank"]
    found = {
        f"{p}.input_layernorm.weight": bf16(np.ones(HIDDEN, np.float32)),
        f"{p}.post_attention_layernorm.weight": bf16(np.ones(HIDDEN, np.float32)),
        f"{p}.self_attn.q_a_proj.weight": bf16(_random(rng, q_rank, HIDDEN)),
        f"{p}.self_attn.q_a_layernorm.weight": bf16(np.ones(q_rank, np.float32)),
        f"{p}.self_attn.q_b_proj.weight": bf16(_random(rng, heads * (nope + rope), q_rank)),
        f"{p}.self_attn.kv_a_proj_with_mqa.weight": bf16(_random(rng, rank + rope, HIDDEN)),
        f"{p}.self_attn.kv_a_layernorm.weight": bf16(np.ones(rank, np.float32)),
        f"{p}.self_attn.kv_b_proj.weight": bf16(_random(rng, heads * (nope + value), rank)),
        f"{p}.self_attn.o_proj.weight": bf16(_random(rng, HIDDEN, heads * value)),
    }
    if layer < c["first_k_dense_replace"]:
        return found | _dense(f"{p}.mlp", rng)
    experts = c["n_routed_experts"]
    found[f"{p}.mlp.gate.weight"] = bf16(_random(rng, experts, HIDDEN))
    found[f"{p}.mlp.gate.e_score_correction_bias"] = f32(_random(rng, experts))
    for expert in range(experts):
        found |= _dense(f"{p}.mlp.experts.{expert}", rng)
    return found | _dense(f"{p}.mlp.shared_experts", rng)


def qwen_layer(layer: int, config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Tensor]:
    c, p = config, f"model.layers.{layer}"
    d, heads, kv = c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
    found = {
        f"{p}.input_layernorm.weight": bf16(np.ones(HIDDEN, np.float32)),
        f"{p}.post_attention_layernorm.weight": bf16(np.ones(HIDDEN, np.float32)),
        f"{p}.self_attn.q_proj.weight": bf16(_random(rng, heads * d, HIDDEN)),
        f"{p}.self_attn.k_proj.weight": bf16(_random(rng, kv * d, HIDDEN)),
        f"{p}.self_attn.v_proj.weight": bf16(_random(rng, kv * d, HIDDEN)),
        f"{p}.self_attn.o_proj.weight": bf16(_random(rng, HIDDEN, heads * d)),
        f"{p}.self_attn.q_norm.weight": bf16(np.ones(d, np.float32)),
        f"{p}.self_attn.k_norm.weight": bf16(np.ones(d, np.float32)),
        f"{p}.mlp.gate.weight": bf16(_random(rng, c["num_experts"], HIDDEN)),
    }
    for expert in range(c["num_experts"]):
        found |= _dense(f"{p}.mlp.experts.{expert}", rng)
    return found


def _ends(config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Tensor]:
    vocabulary = config["vocab_size"]
    return {
        "model.embed_tokens.weight": bf16(_random(rng, vocabulary, HIDDEN) * 8),
        "model.norm.weight": bf16(np.ones(HIDDEN, np.float32)),
        "lm_head.weight": bf16(_random(rng, vocabulary, HIDDEN)),
    }


def deepseek(**changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config and tensors of a DeepSeek-V3 with a dense and an MoE layer."""
    config = config_of("tiny-deepseek-v3", **(DEEPSEEK | changes))
    rng = np.random.default_rng(3)
    tensors = _ends(config, rng)
    for layer in range(config["num_hidden_layers"]):
        tensors |= deepseek_layer(layer, config, rng)
    return config, tensors


def qwen(**changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config and tensors of a Qwen3-MoE with one layer."""
    config = config_of("tiny-qwen3moe", **(QWEN | changes))
    rng = np.random.default_rng(4)
    tensors = _ends(config, rng)
    for layer in range(config["num_hidden_layers"]):
        tensors |= qwen_layer(layer, config, rng)
    return config, tensors


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], shards: int = 1) -> Path:
    """config.json, the trained tokenizer of that family, and the tensors in ``shards`` files with an index."""
    model = "tiny-qwen3moe" if config["model_type"].startswith("qwen") else "tiny-deepseek-v3"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / model / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        weight_map |= dict.fromkeys(part, file)
        (folder / file).write_bytes(safetensors_bytes({n: tensors[n] for n in part}))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
