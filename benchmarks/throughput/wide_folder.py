"""A DeepSeek-V3 of real width and few layers as a Hugging Face folder: FP8 codes of normal random numbers.

Matrices have 7168 and 2048 columns, 128 heads and the ranks of the original, with a scale for each block of 128 by 128.
The vocabulary is that of the trained small model. All codes come from one pool of 256 MiB, each matrix from another
place in it, so that a terabyte's worth could be written without drawing it; no two experts have the same values in the
same place.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.storage.small_floats import E4M3, round_to_bf16

SMALL = Path(__file__).resolve().parents[2] / "tests" / "models" / "tiny-deepseek-v3"
HIDDEN, WIDTH, Q_RANK, RANK, NOPE, ROPE, VALUE = 7168, 2048, 1536, 512, 128, 64, 128
BLOCK = 128
POOL = 2**28
Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Bytes = NDArray[np.uint8]


def write_wide(folder: Path, *, experts: int, layers: int = 1, heads: int = 128) -> Path:
    """Write ``layers`` MoE layers with ``experts`` each and ``heads`` of the 128 in attention.

    A file of safetensors a layer, and one for embedding and output.
    """
    folder.mkdir(parents=True)
    config = json.loads((SMALL / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN, "moe_intermediate_size": WIDTH, "num_attention_heads": heads,
        "num_key_value_heads": heads, "q_lora_rank": Q_RANK, "kv_lora_rank": RANK, "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "num_hidden_layers": layers, "first_k_dense_replace": 0,
        "n_routed_experts": experts, "num_experts_per_tok": min(8, experts), "n_group": 1, "topk_group": 1,
        "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SMALL / name, folder / name)
    rng = np.random.default_rng(0)
    pool = _codes(rng)
    vocabulary = int(config["vocab_size"])
    ends: Shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "lm_head.weight": (vocabulary, HIDDEN)}
    norm: Shapes = {"model.norm.weight": (HIDDEN,)}
    files = {"model-ends.safetensors": (ends, norm)}
    for layer in range(layers):
        files[f"model-layer-{layer}.safetensors"] = (_plain(layer, experts), _norms(layer, experts))
    weight_map: dict[str, str] = {}
    for number, (file, (plain, small)) in enumerate(files.items()):
        float8 = _float8(number - 1, experts, heads) if number else {}
        weight_map |= dict.fromkeys(_write(folder / file, plain, small, float8, pool, rng), file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _codes(rng: np.random.Generator) -> Bytes:
    """E4M3 codes of normal random numbers whose largest is 448 at 4.5 standard deviations."""
    at = (np.arange(2**16) + 0.5) / 2**16
    values = np.array([NormalDist().inv_cdf(p) for p in at]) * (448 / 4.5)
    codes = np.argsort(E4M3[:127])  # ascending without NaN
    ascending = E4M3[codes]
    nearest = np.abs(np.searchsorted((ascending[1:] + ascending[:-1]) / 2, np.abs(values)))
    table = (codes[nearest] | np.where(values < 0, 128, 0)).astype(np.uint8)
    pool = np.empty(POOL, np.uint8)
    for start in range(0, POOL, 2**24):
        pool[start : start + 2**24] = table[rng.integers(0, 2**16, 2**24, np.uint16)]
    return pool


def _plain(layer: int, experts: int) -> Shapes:
    return {f"model.layers.{layer}.mlp.gate.weight": (experts, HIDDEN)}


def _norms(layer: int, experts: int) -> Shapes:
    p = f"model.layers.{layer}"
    return {
        f"{p}.input_layernorm.weight": (HIDDEN,), f"{p}.post_attention_layernorm.weight": (HIDDEN,),
        f"{p}.self_attn.q_a_layernorm.weight": (Q_RANK,), f"{p}.self_attn.kv_a_layernorm.weight": (RANK,),
        f"{p}.mlp.gate.e_score_correction_bias": (experts,),
    }  # fmt: skip


def _float8(layer: int, experts: int, heads: int) -> Shapes:
    p = f"model.layers.{layer}"
    found: Shapes = {
        f"{p}.self_attn.q_a_proj.weight": (Q_RANK, HIDDEN),
        f"{p}.self_attn.q_b_proj.weight": (heads * (NOPE + ROPE), Q_RANK),
        f"{p}.self_attn.kv_a_proj_with_mqa.weight": (RANK + ROPE, HIDDEN),
        f"{p}.self_attn.kv_b_proj.weight": (heads * (NOPE + VALUE), RANK),
        f"{p}.self_attn.o_proj.weight": (HIDDEN, heads * VALUE),
    }
    for block in (*(f"{p}.mlp.experts.{expert}" for expert in range(experts)), f"{p}.mlp.shared_experts"):
        found |= {f"{block}.{side}_proj.weight": (WIDTH, HIDDEN) for side in ("gate", "up")}
        found[f"{block}.down_proj.weight"] = (HIDDEN, WIDTH)
    return found


def _write(
    path: Path, plain: Shapes, small: Shapes, float8: Shapes, pool: Bytes,
    rng: np.random.Generator,
) -> list[str]:  # fmt: skip
    """One file: ``plain`` as BF16, ``small`` as BF16 or F32 ones, ``float8`` with their scales. Names in it."""
    dtypes: dict[str, tuple[str, Shape]] = {name: ("BF16", shape) for name, shape in plain.items()}
    dtypes |= {name: ("F32" if name.endswith("bias") else "BF16", shape) for name, shape in small.items()}
    for name, shape in float8.items():
        dtypes[name] = ("F8_E4M3", shape)
        dtypes[f"{name}_scale_inv"] = ("F32", tuple(-(-n // BLOCK) for n in shape))
    header, at = {}, 0
    for name, (dtype, shape) in dtypes.items():
        size = prod(shape) * {"BF16": 2, "F32": 4, "F8_E4M3": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, (dtype, shape) in dtypes.items():
            for piece in _values(name, dtype, shape, pool, rng):
                file.write(piece.data)
    return list(dtypes)


def _values(
    name: str, dtype: str, shape: Shape, pool: Bytes, rng: np.random.Generator
) -> Iterator[NDArray[np.generic]]:
    if dtype == "F8_E4M3":
        left, start = prod(shape), int(rng.integers(POOL))
        while left:
            piece = pool[start : start + left]
            yield piece
            left, start = left - len(piece), 0
    elif name.endswith("_scale_inv"):
        yield np.exp(rng.normal(-8.5, 0.2, shape)).astype("<f4")
    elif dtype == "F32":
        yield rng.normal(0, 0.01, shape).astype("<f4")
    elif len(shape) == 1:
        yield round_to_bf16(np.ones(shape, np.float32))
    else:
        yield round_to_bf16(rng.standard_normal(shape, np.float32) * np.float32(0.02))
