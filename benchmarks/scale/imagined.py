"""DeepSeek-V3 and Kimi-K2 by their exact tensor tables, without their values.

Names, shapes and metadata are those of the GGUF that either becomes (config.json of deepseek-ai/DeepSeek-V3-0324
and moonshotai/Kimi-K2-Instruct); weights and importance matrix are random numbers, made when they are read, so that
no terabyte is needed. The tokenizer has as many tokens and merges as the real one, of made-up text, so a header is
some hundred kilobytes off.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import layer_of, role_of
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting, Stats

TOKENS = 1_600_000
BF16, F32 = GGMLQuantizationType.BF16, GGMLQuantizationType.F32
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A DeepSeek-V3-like model; ``parameters``: without prediction layers, for a check of the table."""

    name: str
    layers: int
    dense: int
    experts: int
    groups: int
    groups_used: int
    heads: int
    vocabulary: int
    merges: int
    context: int
    scale: float
    parameters: int
    width: int = 7168
    dense_width: int = 18432
    expert_width: int = 2048
    used: int = 8
    q_rank: int = 1536
    rank: int = 512
    rope: int = 64
    nope: int = 128
    value: int = 128


DEEPSEEK_V3 = Model("DeepSeek-V3", 61, 3, 256, 8, 4, 128, 129280, 127741, 163840, 2.5, 671_026_419_200)
KIMI_K2 = Model("Kimi-K2", 61, 1, 384, 1, 1, 64, 163840, 163328, 131072, 2.827, 1_026_408_232_448)
MODELS = {"deepseek-v3": DEEPSEEK_V3, "kimi-k2": KIMI_K2}


def shapes(m: Model) -> dict[str, Shape]:
    """Every tensor of the GGUF, numpy order."""
    found: dict[str, Shape] = {"token_embd.weight": (m.vocabulary, m.width)}
    for layer in range(m.layers):
        parts = _attention(m) | (_dense(m) if layer < m.dense else _experts(m))
        found |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    return found | {"output_norm.weight": (m.width,), "output.weight": (m.vocabulary, m.width)}


def _attention(m: Model) -> dict[str, Shape]:
    return {
        "attn_norm.weight": (m.width,),
        "attn_q_a.weight": (m.q_rank, m.width),
        "attn_q_a_norm.weight": (m.q_rank,),
        "attn_q_b.weight": (m.heads * (m.nope + m.rope), m.q_rank),
        "attn_kv_a_mqa.weight": (m.rank + m.rope, m.width),
        "attn_kv_a_norm.weight": (m.rank,),
        "attn_k_b.weight": (m.heads, m.rank, m.nope),
        "attn_v_b.weight": (m.heads, m.value, m.rank),
        "attn_output.weight": (m.width, m.heads * m.value),
        "ffn_norm.weight": (m.width,),
    }


def _dense(m: Model) -> dict[str, Shape]:
    sides: dict[str, Shape] = {f"ffn_{side}.weight": (m.dense_width, m.width) for side in ("gate", "up")}
    return sides | {"ffn_down.weight": (m.width, m.dense_width)}


def _experts(m: Model) -> dict[str, Shape]:
    found: dict[str, Shape] = {"ffn_gate_inp.weight": (m.experts, m.width), "exp_probs_b.bias": (m.experts,)}
    for kind, first in (("exps", (m.experts,)), ("shexp", ())):
        found |= {f"ffn_{side}_{kind}.weight": (*first, m.expert_width, m.width) for side in ("gate", "up")}
        found |= {f"ffn_down_{kind}.weight": (*first, m.width, m.expert_width)}
    return found


class Imagined(Checkpoint):
    """A model by shape; values are normal random numbers, the same for the same rows, out of one pool: making them anew
    would take longer than a disk takes to read weights."""

    def __init__(self, model: Model) -> None:
        self.path, self.format, self.notes = Path(f"imagined-{model.name}"), "imagined", ()
        self.model = model
        self.metadata = metadata(model)
        self.tensors = {}
        for name, shape in shapes(model).items():
            kind = F32 if len(shape) == 1 or "gate_inp" in name else BF16
            size = tensor_bytes(kind.name, shape)
            self.tensors[name] = TensorInfo(name, shape, kind, size, role_of(name), layer_of(name))

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> NDArray[np.float32]:
        shape = self.tensors[name].shape if expert is None else self.tensors[name].shape[1:]
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        size, at = (stop - start) * prod(shape[1:]), zlib.crc32(f"{name} {expert} {start}".encode()) % len(_pool())
        return np.resize(np.roll(_pool(), -at) if at + size > len(_pool()) else _pool()[at : at + size], size).reshape(
            stop - start, *shape[1:]
        )

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> NDArray[np.uint8]:
        values = self.read(name, expert=expert, rows=rows).view(np.uint32)
        return values.view(np.uint8) if self.tensors[name].type == F32 else _bf16(values)


@cache
def _pool() -> NDArray[np.float32]:
    return np.float32(0.02) * np.random.default_rng(1).standard_normal(2**22, np.float32)


def _bf16(bits: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return (bits >> 16).astype(np.uint16).view(np.uint8)


def metadata(m: Model) -> dict[str, MetaValue]:
    """GGUF keys, as conversion writes them."""
    integer, text, array = GGUFValueType.UINT32, GGUFValueType.STRING, GGUFValueType.ARRAY
    keys = {
        "block_count": m.layers, "context_length": m.context, "embedding_length": m.width,
        "feed_forward_length": m.dense_width, "attention.head_count": m.heads, "attention.head_count_kv": 1,
        "attention.q_lora_rank": m.q_rank, "attention.kv_lora_rank": m.rank,
        "attention.key_length": m.rank + m.rope, "attention.value_length": m.rank,
        "attention.key_length_mla": m.nope + m.rope, "attention.value_length_mla": m.value,
        "rope.dimension_count": m.rope, "leading_dense_block_count": m.dense, "expert_count": m.experts,
        "expert_used_count": m.used, "expert_feed_forward_length": m.expert_width, "expert_shared_count": 1,
        "expert_gating_func": 2, "vocab_size": m.vocabulary,
    }  # fmt: skip
    if m.groups > 1:
        keys |= {"expert_group_count": m.groups, "expert_group_used_count": m.groups_used}
    found = {
        "general.architecture": MetaValue("deepseek2", text),
        "general.name": MetaValue(f"imagined {m.name}", text),
        "deepseek2.expert_weights_norm": MetaValue(True, GGUFValueType.BOOL),
        "deepseek2.expert_weights_scale": MetaValue(m.scale, GGUFValueType.FLOAT32),
        "tokenizer.ggml.model": MetaValue("gpt2", text),
        "tokenizer.ggml.tokens": MetaValue([f"token{i}" for i in range(m.vocabulary)], array, text),
        "tokenizer.ggml.merges": MetaValue([f"a{i} b{i}" for i in range(m.merges)], array, text),
    }
    return found | {f"deepseek2.{key}": MetaValue(value, integer) for key, value in keys.items()}


def statistics(checkpoint: Imagined, data: Path | None) -> Stats:
    """Routing, and a random importance matrix of full size.

    ``data``: the folder of DeepSeek-V3-0324's routing statistics. Of another model a layer has V3's counts, of layers
    in turn and its experts as often as it needs; without data all is random.
    """
    m = checkpoint.model
    rng = np.random.default_rng(0)
    real = json.loads((data / "deepseek-v3-0324-routing-8k.json").read_text()) if data else None
    routing = {layer: _routing(m, layer, real, rng) for layer in range(m.dense, m.layers)}
    imatrix = {}
    for name, info in checkpoint.tensors.items():
        if info.layer is None or len(info.shape) == 1 or "gate_inp" in name:
            continue
        slices = info.shape[0] if info.by_expert else 1
        columns = info.shape[-1] * (1 if info.by_expert or len(info.shape) == 2 else info.shape[0])
        sums = rng.random((slices, columns), np.float32) + np.float32(0.1)
        count = routing[info.layer].count if info.by_expert else np.array([TOKENS])
        sums *= count[:, None].astype(np.float32)
        imatrix[name] = ImatrixEntry(sums, count.astype(np.float32))
    return Stats(routing, imatrix, TOKENS, 512, ("MMLU prompts",), model_id(checkpoint), "imagined")


def _routing(
    m: Model, layer: int, real: dict[str, dict[str, list[float]]] | None, rng: np.random.Generator
) -> LayerRouting:
    if real is None:
        count = rng.multinomial(TOKENS * m.used, rng.dirichlet(np.full(m.experts, 2.0)))
        weights = count * rng.uniform(0.2, 0.5, m.experts)
    else:
        entry = real[f"layer_{max(layer, 3)}"]
        at = np.arange(m.experts) % len(entry["activations"])
        count = np.array(entry["activations"], np.int64)[at]
        weights = np.array(entry["scores"], np.float64)[at]
        count[0] += -int(count.sum()) % m.used  # selections are a whole number of tokens
    return LayerRouting(int(count.sum()) // m.used, count, weights, weights)
