"""A plan of DeepSeek-V3's shape, made up by hand: real names, shapes and types, imagined figures."""

from __future__ import annotations

import math

import numpy as np
from gguf import GGUFValueType

from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.plans.plan import Activation, Calibration, Plan, Point, Pruning, Source, TensorPlan
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting, Stats

LAYERS, DENSE, EXPERTS, KEPT, TOP_K = 61, 3, 256, 192, 8
WIDTH, HIDDEN, VOCABULARY, HEADS, RANK, ROPE, NOPE, VALUE, QUERY = 7168, 2048, 129280, 128, 512, 64, 128, 128, 1536
BUDGET = 103 * 10**9


def shapes(experts: int) -> dict[str, tuple[int, ...]]:
    """Shapes (numpy order) of the tensors of DeepSeek-V3 with so many experts a layer."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
        "output.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(LAYERS):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (WIDTH,),
            "attn_q_a.weight": (QUERY, WIDTH),
            "attn_q_a_norm.weight": (QUERY,),
            "attn_q_b.weight": (HEADS * (NOPE + ROPE), QUERY),
            "attn_kv_a_mqa.weight": (RANK + ROPE, WIDTH),
            "attn_kv_a_norm.weight": (RANK,),
            "attn_k_b.weight": (HEADS, RANK, NOPE),
            "attn_v_b.weight": (HEADS, VALUE, RANK),
            "attn_output.weight": (WIDTH, HEADS * VALUE),
            "ffn_norm.weight": (WIDTH,),
        }
        if layer < DENSE:
            parts |= {"ffn_gate.weight": (18432, WIDTH), "ffn_up.weight": (18432, WIDTH)}
            parts["ffn_down.weight"] = (WIDTH, 18432)
        else:
            parts |= {"ffn_gate_inp.weight": (experts, WIDTH), "exp_probs_b.bias": (experts,)}
            for name, up, down in (
                ("exps", (experts, HIDDEN, WIDTH), (experts, WIDTH, HIDDEN)),
                ("shexp", (HIDDEN, WIDTH), (WIDTH, HIDDEN)),
            ):
                parts |= {f"ffn_gate_{name}.weight": up, f"ffn_up_{name}.weight": up, f"ffn_down_{name}.weight": down}
        found |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
    return found


def _type(name: str, layer: int) -> str:
    if name.endswith(("_norm.weight", "gate_inp.weight", ".bias")):
        return "F32"
    if "_exps" in name:
        ends = layer < 10 or layer > 53
        down = "down" in name
        return "IQ2_XXS" if ends and down else "IQ1_M" if ends or down else "IQ1_S"
    if "k_b" in name:
        return "Q5_0"
    if name == "token_embd.weight":
        return "Q2_K"
    return "Q4_K" if "attn_kv_a" in name or name == "output.weight" else "IQ3_XXS" if layer % 3 else "Q3_K"


def big_stats(seed: int = 0) -> Stats:
    """Statistics with the skew of real ones; some experts never selected."""
    rng = np.random.default_rng(seed)
    routing = {}
    for layer in range(DENSE, LAYERS):
        count = rng.lognormal(9.5, 0.8, EXPERTS).astype(np.int64)
        count[rng.choice(EXPERTS, 2, replace=False)] = 0
        weights = count * rng.uniform(0.15, 0.6, EXPERTS)
        routing[layer] = LayerRouting(int(count.sum()) // TOP_K, count, weights, weights * rng.gamma(4.0, 1.0, EXPERTS))
    entry = ImatrixEntry(np.ones((1, WIDTH), np.float32), np.ones(1, np.float32))
    return Stats(routing, {"output.weight": entry}, 1_600_000, 512)


def big_plan(kept: dict[int, tuple[int, ...]]) -> Plan:
    """Keep 192 of 256 experts in 103 GB, with a search behind it."""
    old = sum(math.prod(s) for s in shapes(EXPERTS).values())
    tensors = {}
    for name, shape in shapes(KEPT).items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        kind = _type(name, layer)
        tensors[name] = TensorPlan(kind, tensor_bytes(kind, shape), 0.1)
    size = sum(t.nbytes for t in tensors.values()) + 6_000_000
    return Plan(
        source=Source(
            "sha256:" + "1" * 64,
            "sha256:" + "2" * 64,
            "DeepSeek-V3-0324 (made up)",
            "deepseek2",
            "safetensors",
            2 * old,
            old,
        ),
        requires=(),
        calibration=Calibration(
            sha256="3" * 64,
            tokens=1_600_000,
            datasets=("mmlu prompts",),
            engine="an imagined engine",
            frequency_only=False,
            unseen=116,
            borrow=32.0,
            text_sketch="",
            file="stats.gguf",
        ),
        pruning=Pruning("freq-score", {"alpha": 0.5}, "layer-max", "balanced", KEPT, kept, 0.1385),
        activation=Activation(TOP_K, 6, "share"),
        metadata={"deepseek2.expert_count": KEPT, "deepseek2.expert_used_count": 6},
        tensors=tensors,
        budget=max(BUDGET, size + 1234),
        bytes=size,
        bits_per_weight=8 * size / old,
        predicted_kld=0.8123,
        prediction="imagined: weights from no probe at all",
        sensitivity=None,
        considered=points(size),
        allocator="knapsack",
        allocator_options={"seconds": 20.0},
        base="IQ1_S",
        notes=("116 experts were never seen in calibration; their importance is unknown",),
        versions={"collab-plugin": "0.1.0", "kernels": "none"},
    )


def points(size: int) -> tuple[Point, ...]:
    """Candidates at the budget, a front, and baselines; three of them measured."""
    found = []
    for used in (8, 6, 5):
        for kept in (256, 240, 224, 208, 192, 176, 160, 144, 128):
            loss = 0.6 + 3.0 * ((kept - 190) / 256) ** 2 + 0.05 * (8 - used) ** 2 + 0.3 * (kept > 230)
            chosen = (kept, used) == (192, 6)
            found.append(
                Point(
                    "candidate",
                    "",
                    kept,
                    used,
                    size - 50_000 * kept + 192 * 50_000,
                    0.8123 if chosen else loss + 0.3,
                    0.9012 if chosen else loss if kept == 208 else None,
                    chosen,
                )
            )
    for gigabytes, kept, loss in (
        (70, 128, 2.9),
        (80, 144, 2.0),
        (90, 160, 1.3),
        (120, 224, 0.5),
        (140, 256, 0.31),
        (180, 256, 0.15),
        (240, 256, 0.06),
        (330, 256, 0.02),
    ):
        found.append(Point("front", "", kept, 8, gigabytes * 10**9, loss, None, False))
    found.append(Point("baseline", "quantization only", 256, 8, 131_400_000_000, 0.62, 0.71, False))
    found.append(Point("baseline", "pruning only", 48, 2, 102_900_000_000, 5.1, None, False))
    found.append(Point("baseline", "paper", 192, 6, 102_600_000_000, 1.31, None, False))
    return tuple(sorted(found, key=lambda p: p.bytes))


def some_kept() -> dict[int, tuple[int, ...]]:
    """24 of each group's 32 experts, others in every layer."""
    groups, size = 8, EXPERTS // 8
    kept = {}
    for layer in range(DENSE, LAYERS):
        rng = np.random.default_rng(layer)
        ids = [g * size + i for g in range(groups) for i in sorted(rng.choice(size, KEPT // groups, replace=False))]
        kept[layer] = tuple(int(i) for i in ids)
    return kept


def big_metadata() -> dict[str, MetaValue]:
    """The keys of DeepSeek-V3 that the cache depends on, as converted for MLA (docs/sources.md, V3 sizes)."""
    keys = {
        "block_count": LAYERS,
        "embedding_length": WIDTH,
        "expert_feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": RANK + ROPE,
        "attention.value_length": RANK,
        "attention.key_length_mla": NOPE + ROPE,
        "attention.value_length_mla": VALUE,
    }
    return {f"deepseek2.{key}": MetaValue(value, GGUFValueType.UINT32) for key, value in keys.items()}
