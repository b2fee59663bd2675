"""How long `plan` takes on a model of DeepSeek-V3's size, and what it decides.

    python -m benchmarks.speed.plan [--budget 103GB] [--data FOLDER] [--threads 2]

The shapes are V3's (61 layers, 256 experts in 8 groups, 671 billion parameters), the routing statistics
the real ones of DeepSeek-V3-0324 in the folder of --data, if given; weights and importance matrix are random
numbers, made when they are read, so that no terabyte is needed. Reading the statistics is part of the
time. Prints seconds, then the plan.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray
from rich.console import Console

import collab_plugin as cp
from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.cli.plan_table import render_plan
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import layer_of, role_of
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting, Stats

LAYERS, DENSE, EXPERTS, WIDTH, EXPERT_WIDTH, VOCABULARY = 61, 3, 256, 7168, 2048, 129280
TOKENS = 1_600_000
BF16, F32 = GGMLQuantizationType.BF16, GGMLQuantizationType.F32


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (WIDTH,),
            "attn_q_a.weight": (1536, WIDTH),
            "attn_q_a_norm.weight": (1536,),
            "attn_q_b.weight": (24576, 1536),
            "attn_kv_a_mqa.weight": (576, WIDTH),
            "attn_kv_a_norm.weight": (512,),
            "attn_k_b.weight": (128, 512, 128),
            "attn_v_b.weight": (128, 128, 512),
            "attn_output.weight": (WIDTH, 16384),
            "ffn_norm.weight": (WIDTH,),
        }
        if layer < DENSE:
            parts |= {"ffn_gate.weight": (18432, WIDTH), "ffn_up.weight": (18432, WIDTH)}
            parts |= {"ffn_down.weight": (WIDTH, 18432)}
        else:
            parts |= {"ffn_gate_inp.weight": (EXPERTS, WIDTH), "exp_probs_b.bias": (EXPERTS,)}
            for kind, first in (("exps", (EXPERTS,)), ("shexp", ())):
                parts |= {f"ffn_{side}_{kind}.weight": (*first, EXPERT_WIDTH, WIDTH) for side in ("gate", "up")}
                parts |= {f"ffn_down_{kind}.weight": (*first, WIDTH, EXPERT_WIDTH)}
        found |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    return found | {"output_norm.weight": (WIDTH,), "output.weight": (VOCABULARY, WIDTH)}


class Imagined(Checkpoint):
    """V3 by shape; values are normal random numbers, the same for the same rows."""

    def __init__(self) -> None:
        self.path, self.format, self.notes = Path("imagined-deepseek-v3"), "imagined", ()
        self.metadata = metadata()
        self.tensors = {}
        for name, shape in shapes().items():
            kind = F32 if len(shape) == 1 or "gate_inp" in name else BF16
            size = tensor_bytes(kind.name, shape)
            self.tensors[name] = TensorInfo(name, shape, kind, size, role_of(name), layer_of(name))

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> NDArray[np.float32]:
        shape = self.tensors[name].shape if expert is None else self.tensors[name].shape[1:]
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        rng = np.random.default_rng((zlib.crc32(name.encode()), expert or 0, start))
        return np.float32(0.02) * rng.standard_normal((stop - start, *shape[1:]), np.float32)

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> NDArray[np.uint8]:
        values = self.read(name, expert=expert, rows=rows).view(np.uint32)
        return values.view(np.uint8) if self.tensors[name].type == F32 else _bf16(values)


def _bf16(bits: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return (bits >> 16).astype(np.uint16).view(np.uint8)


def metadata() -> dict[str, MetaValue]:
    integer, text, array = GGUFValueType.UINT32, GGUFValueType.STRING, GGUFValueType.ARRAY
    keys = {
        "block_count": LAYERS, "context_length": 163840, "embedding_length": WIDTH, "feed_forward_length": 18432,
        "attention.head_count": 128, "attention.head_count_kv": 1, "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
        "leading_dense_block_count": DENSE, "expert_count": EXPERTS, "expert_used_count": 8,
        "expert_feed_forward_length": EXPERT_WIDTH, "expert_shared_count": 1, "expert_gating_func": 2,
        "expert_group_count": 8, "expert_group_used_count": 4, "vocab_size": VOCABULARY,
    }  # fmt: skip
    found = {
        "general.architecture": MetaValue("deepseek2", text),
        "general.name": MetaValue("imagined DeepSeek-V3", text),
        "deepseek2.expert_weights_norm": MetaValue(True, GGUFValueType.BOOL),
        "deepseek2.expert_weights_scale": MetaValue(2.5, GGUFValueType.FLOAT32),
        "tokenizer.ggml.model": MetaValue("gpt2", text),
        "tokenizer.ggml.tokens": MetaValue([f"token{i}" for i in range(VOCABULARY)], array, text),
        "tokenizer.ggml.merges": MetaValue([f"a{i} b{i}" for i in range(127741)], array, text),
    }
    return found | {f"deepseek2.{key}": MetaValue(value, integer) for key, value in keys.items()}


def statistics(checkpoint: Checkpoint, data: Path | None) -> Stats:
    """The real routing in the folder ``data``, random without one; a random importance matrix of full size."""
    rng = np.random.default_rng(0)
    real = json.loads((data / "deepseek-v3-0324-routing-8k.json").read_text()) if data else None
    routing = {}
    for layer in range(DENSE, LAYERS):
        if real:
            entry = real[f"layer_{layer}"]
            count, weights = np.array(entry["activations"], np.int64), np.array(entry["scores"], np.float64)
        else:
            count = rng.multinomial(TOKENS * 8, rng.dirichlet(np.full(EXPERTS, 2.0)))
            weights = count * rng.uniform(0.2, 0.5, EXPERTS)
        routing[layer] = LayerRouting(int(count.sum()) // 8, count, weights, weights)
    imatrix = {}
    for name, info in checkpoint.tensors.items():
        if info.layer is None or len(info.shape) == 1 or "gate_inp" in name:
            continue
        slices = info.shape[0] if info.by_expert else 1
        columns = info.shape[-1] * (1 if info.by_expert or len(info.shape) == 2 else info.shape[0])
        sums = rng.random((slices, columns), np.float32) + np.float32(0.1)
        count = routing[info.layer].count if info.by_expert else np.array([TOKENS])
        imatrix[name] = ImatrixEntry(sums * count[:, None].astype(np.float32), count.astype(np.float32))
    return Stats(routing, imatrix, TOKENS, 512, ("MMLU prompts",), model_id(checkpoint), "imagined")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--budget", default="103GB")
    p.add_argument("--data", type=Path, help="folder of the real routing statistics")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    checkpoint = Imagined()
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "stats.gguf"
        cp.write_stats(stats, statistics(checkpoint, a.data))
        start, cpu = time.monotonic(), time.process_time()
        plan = cp.plan(checkpoint, stats=stats, budget=a.budget, experts_used="auto", threads=a.threads)
        seconds, busy = time.monotonic() - start, time.process_time() - cpu
    print(f"{seconds:.1f} s, {busy:.1f} CPU-seconds, {a.threads} threads")
    render_plan(Console(), plan)
    for point in plan.considered:
        if point.kind != "front":
            print(
                f"{point.kind:10} {point.label:14} {point.expert_count} experts, top-{point.experts_used}: "
                f"{point.bytes:,} bytes, predicted {point.predicted_kld:.4f}{' *' if point.chosen else ''}"
            )


if __name__ == "__main__":
    main()
