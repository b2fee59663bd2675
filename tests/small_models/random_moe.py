"""Random MoE GGUFs of a few million weights with 16 experts, and statistics of an imagined calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import ExpertGatingFuncType, GGUFWriter
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.formats.tensor_names import Role
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting, Stats

WIDTH = 256
EXPERTS = 16
TOP_K = 4
GROUPS = 4
GROUPS_USED = 2
BLOCKS = 2
VOCABULARY = 320
F64 = NDArray[np.float64]


def _matrix(rng: np.random.Generator, *shape: int) -> NDArray[np.float16]:
    # Rows of different size, so that tensors differ in how much a type hurts them.
    scale = rng.gamma(2.0, 1.0, (*shape[:-1], 1))
    return (rng.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float16)


def _writer(path: Path, architecture: str, blocks: int = BLOCKS) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    writer.add_name(f"random {architecture}")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(WIDTH)
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    writer.add_head_count(4)
    return writer


def _write(writer: GGUFWriter, tensors: dict[str, NDArray[np.floating]], path: Path) -> Path:
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _ends(rng: np.random.Generator) -> dict[str, NDArray[np.floating]]:
    return {
        "token_embd.weight": _matrix(rng, VOCABULARY, WIDTH),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": _matrix(rng, VOCABULARY, WIDTH),
    }


def _experts(rng: np.random.Generator, block: str) -> dict[str, NDArray[np.floating]]:
    return {
        f"{block}.ffn_gate_inp.weight": rng.standard_normal((EXPERTS, WIDTH)).astype(np.float32),
        **{f"{block}.ffn_{part}_exps.weight": _matrix(rng, EXPERTS, WIDTH, WIDTH) for part in ("gate", "up", "down")},
    }


def write_qwen3moe(path: Path, *, seed: int = 0) -> Path:
    """Softmax router, weights renormalised, no groups, no shared expert."""
    rng = np.random.default_rng(seed)
    tensors = _ends(rng)
    for layer in range(BLOCKS):
        b = f"blk.{layer}"
        tensors |= {
            f"{b}.attn_norm.weight": np.ones(WIDTH, np.float32),
            f"{b}.attn_q.weight": _matrix(rng, WIDTH, WIDTH),
            f"{b}.attn_k.weight": _matrix(rng, 128, WIDTH),
            f"{b}.attn_v.weight": _matrix(rng, 128, WIDTH),
            f"{b}.attn_output.weight": _matrix(rng, WIDTH, WIDTH),
            f"{b}.ffn_norm.weight": np.ones(WIDTH, np.float32),
            **_experts(rng, b),
        }
    return _write(_writer(path, "qwen3moe"), tensors, path)


def write_deepseek2(path: Path, *, seed: int = 0, blocks: int = BLOCKS) -> Path:
    """MLA, a leading dense layer, sigmoid router with bias, 4 groups of which 2 are used, a shared expert."""
    rng = np.random.default_rng(seed)
    writer = _writer(path, "deepseek2", blocks)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_shared_count(1)
    writer.add_expert_group_count(GROUPS)
    writer.add_expert_group_used_count(GROUPS_USED)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    tensors = _ends(rng)
    for layer in range(blocks):
        b = f"blk.{layer}"
        tensors |= {
            f"{b}.attn_norm.weight": np.ones(WIDTH, np.float32),
            f"{b}.ffn_norm.weight": np.ones(WIDTH, np.float32),
            f"{b}.attn_q_a.weight": _matrix(rng, 64, WIDTH),
            f"{b}.attn_q_b.weight": _matrix(rng, 192, 64),
            f"{b}.attn_kv_a_mqa.weight": _matrix(rng, 80, WIDTH),
            f"{b}.attn_k_b.weight": _matrix(rng, 4, 64, 32),
            f"{b}.attn_v_b.weight": _matrix(rng, 4, 32, 64),
            f"{b}.attn_output.weight": _matrix(rng, WIDTH, 128),
        }
        if layer == 0:
            tensors |= {f"{b}.ffn_{part}.weight": _matrix(rng, WIDTH, WIDTH) for part in ("gate", "up", "down")}
            continue
        tensors |= {f"{b}.exp_probs_b.bias": rng.standard_normal(EXPERTS).astype(np.float32), **_experts(rng, b)}
        tensors |= {f"{b}.ffn_{part}_shexp.weight": _matrix(rng, WIDTH, WIDTH) for part in ("gate", "up", "down")}
    return _write(writer, tensors, path)


def imagined_routing(tokens: int, seed: int, never: tuple[int, ...] = ()) -> LayerRouting:
    """``tokens`` tokens over experts of uneven popularity; the experts ``never`` are not selected."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.0, EXPERTS) + rng.gumbel(size=(tokens, EXPERTS))
    logits[:, list(never)] = -np.inf
    chosen = np.argsort(-logits, axis=1)[:, :TOP_K]
    weights = np.exp(np.take_along_axis(logits, chosen, 1))
    weights /= weights.sum(1, keepdims=True)
    norms = rng.gamma(4.0, 1.0, EXPERTS)[chosen]

    def by_expert(values: F64) -> F64:
        return np.bincount(chosen.ravel(), values.ravel(), minlength=EXPERTS)

    count = np.bincount(chosen.ravel(), minlength=EXPERTS)
    return LayerRouting(tokens, count.astype(np.int64), by_expert(weights), by_expert(weights * norms))


def imagined_stats(checkpoint: Checkpoint, *, tokens: int = 2000, seed: int = 0, never: tuple[int, ...] = ()) -> Stats:
    """Stats as calibration leaves them: nothing for the embedding and the output matrix."""
    rng = np.random.default_rng(seed)
    layers = sorted({i.layer for i in checkpoint.tensors.values() if i.role == Role.EXPERT and i.layer is not None})
    routing = {layer: imagined_routing(tokens, seed + layer, never) for layer in layers}
    imatrix = {}
    for name, info in checkpoint.tensors.items():
        if not name.startswith("blk.") or len(info.shape) < 2 or info.role == Role.ROUTER:
            continue
        n = info.shape[-1]
        if info.role == Role.EXPERT:
            count = routing[info.layer or 0].count.astype(np.float32)
            sums = rng.gamma(1.0, 1.0, (EXPERTS, n)) * count[:, None]
        else:
            count = np.full(1, tokens, np.float32)
            sums = rng.gamma(1.0, 1.0, (1, n * (info.shape[0] if len(info.shape) == 3 else 1))) * tokens
        imatrix[name] = ImatrixEntry(sums.astype(np.float32), count)
    return Stats(
        routing=routing,
        imatrix=imatrix,
        tokens=tokens,
        chunk_size=512,
        datasets=("imagined.txt",),
        model_id=model_id(checkpoint),
        engine="imagined",
        text_sketch=np.sort(rng.integers(0, 2**63, 256, dtype=np.uint64)),
    )
