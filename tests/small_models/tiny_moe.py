"""Random MoE GGUFs of about a million weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import ExpertGatingFuncType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.formats.tensor_names import Role
from collab_plugin.stats.stats import ImatrixEntry, Stats

WIDTH = 256
EXPERTS = 4
LAYERS = 2
PINNED = 7  # residual channel that no block writes to: see `write_qwen3moe`
F32 = NDArray[np.float32]


def _vocabulary() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + rest.index(b)) for b in range(256)]


def tokens_of(text: str) -> list[int]:
    """Token ids of ASCII text: a byte each, "th" merged."""
    table = {character: i for i, character in enumerate(_vocabulary())} | {"th": 256}
    stored = [" ", "\n", "\t"]
    table |= {c: table[chr(256 + ord(c))] for c in stored}
    return [table[part] for part in re.findall("th|.", text, re.DOTALL)]


def _start(path: Path, architecture: str, experts: int, layers: int = LAYERS, width: int = WIDTH) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    tokens = [*_vocabulary(), "th", "<|end|>", *(f"<|pad{i}|>" for i in range(30))]
    writer.add_name(f"tiny {architecture}")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(width)
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.CONTROL] * 31)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    return writer


def _finish(writer: GGUFWriter, tensors: Mapping[str, F32]) -> None:
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrix(rng: np.random.Generator, *shape: int) -> F32:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def _experts(rng: np.random.Generator, block: str, count: int = EXPERTS) -> dict[str, F32]:
    return {f"{block}.ffn_{part}_exps.weight": _matrix(rng, count, WIDTH, WIDTH) for part in ("gate", "up", "down")}


def write_qwen3moe(path: Path, *, masked: tuple[int, ...] = (), experts: int = EXPERTS, seed: int = 0) -> Path:
    """Experts in ``masked`` never win: channel `PINNED` is a positive constant that only they look at.

    No block writes to that channel (its output rows are zero), so the router always sees it positive,
    and a weight of -1e4 there keeps an expert out of the top-k whatever the token.
    """
    rng = np.random.default_rng(seed)
    writer = _start(path, "qwen3moe", experts)
    writer.add_head_count_kv(2)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_rope_dimension_count(64)
    ones = np.ones(WIDTH, np.float32)
    embedding = _matrix(rng, 288, WIDTH) * 16
    embedding[:, PINNED] = 4
    tensors = {
        "token_embd.weight": embedding,
        "output_norm.weight": ones,
        "output.weight": _matrix(rng, 288, WIDTH),
    }
    for layer in range(LAYERS):
        b = f"blk.{layer}"
        weights = _experts(rng, b, experts)
        out = _matrix(rng, WIDTH, WIDTH)
        router = _matrix(rng, experts, WIDTH) * 2
        weights[f"{b}.ffn_down_exps.weight"][:, PINNED] = 0
        out[PINNED] = 0
        router[:, PINNED] = 0
        router[list(masked), PINNED] = -1e4
        tensors |= {
            f"{b}.attn_norm.weight": ones,
            f"{b}.ffn_norm.weight": ones,
            f"{b}.attn_q.weight": _matrix(rng, WIDTH, WIDTH),
            f"{b}.attn_k.weight": _matrix(rng, 128, WIDTH),
            f"{b}.attn_v.weight": _matrix(rng, 128, WIDTH),
            f"{b}.attn_output.weight": out,
            f"{b}.attn_q_norm.weight": np.ones(64, np.float32),
            f"{b}.attn_k_norm.weight": np.ones(64, np.float32),
            f"{b}.ffn_gate_inp.weight": router,
            **weights,
        }
    _finish(writer, tensors)
    return path


def write_deepseek2(
    path: Path,
    *,
    masked: tuple[int, ...] = (),
    experts: int = EXPERTS,
    groups: int = 1,
    seed: int = 0,
    predicting: int = 0,
) -> Path:
    """MLA, a leading dense layer, shared expert, router bias; ``masked`` experts have a bias of -1e9.

    With ``groups`` above 1 half of them are chosen for each token. ``predicting``: layers after the others that
    predict further tokens.
    """
    rng = np.random.default_rng(seed)
    writer = _start(path, "deepseek2", experts, LAYERS + predicting)
    if predicting:
        writer.add_nextn_predict_layers(predicting)
    if groups > 1:
        writer.add_expert_group_count(groups)
        writer.add_expert_group_used_count(groups // 2)
    rope, nope, value, q_rank, kv_rank, heads = 16, 32, 32, 64, 64, 4
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(q_rank)
    writer.add_kv_lora_rank(kv_rank)
    writer.add_key_length(kv_rank + rope)
    writer.add_value_length(kv_rank)
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(value)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    ones = np.ones(WIDTH, np.float32)
    tensors = {
        "token_embd.weight": _matrix(rng, 288, WIDTH) * 16,
        "output_norm.weight": ones,
        "output.weight": _matrix(rng, 288, WIDTH),
    }
    for layer in range(LAYERS + predicting):
        b = f"blk.{layer}"
        tensors |= {
            f"{b}.attn_norm.weight": ones,
            f"{b}.ffn_norm.weight": ones,
            f"{b}.attn_q_a_norm.weight": np.ones(q_rank, np.float32),
            f"{b}.attn_kv_a_norm.weight": np.ones(kv_rank, np.float32),
            f"{b}.attn_q_a.weight": _matrix(rng, q_rank, WIDTH),
            f"{b}.attn_q_b.weight": _matrix(rng, heads * (nope + rope), q_rank),
            f"{b}.attn_kv_a_mqa.weight": _matrix(rng, kv_rank + rope, WIDTH),
            f"{b}.attn_k_b.weight": _matrix(rng, heads, kv_rank, nope),
            f"{b}.attn_v_b.weight": _matrix(rng, heads, value, kv_rank),
            f"{b}.attn_output.weight": _matrix(rng, WIDTH, heads * value),
        }
        if layer == 0:
            parts = ("gate", "up", "down")
            tensors |= {f"{b}.ffn_{part}.weight": _matrix(rng, WIDTH, WIDTH) for part in parts}
            continue
        bias = (0.05 * rng.standard_normal(experts)).astype(np.float32)
        bias[list(masked)] = -1e9
        tensors |= {f"{b}.ffn_gate_inp.weight": _matrix(rng, experts, WIDTH), f"{b}.exp_probs_b.bias": bias}
        tensors |= _experts(rng, b, experts)
        tensors |= {f"{b}.ffn_{part}_shexp.weight": _matrix(rng, WIDTH, WIDTH) for part in ("gate", "up", "down")}
        if layer >= LAYERS:
            tensors |= {f"{b}.nextn.{part}.weight": ones for part in ("enorm", "hnorm", "shared_head_norm")}
            tensors[f"{b}.nextn.eh_proj.weight"] = _matrix(rng, WIDTH, 2 * WIDTH)
    _finish(writer, tensors)
    return path


def some_stats(checkpoint: Checkpoint, seed: int = 0) -> Stats:
    """An importance matrix for every weight; the last expert of each layer was never seen."""
    rng = np.random.default_rng(seed)
    entries = {}
    for name, info in checkpoint.tensors.items():
        if len(info.shape) < 2 or not name.endswith(".weight"):
            continue
        n = info.shape[-1]
        if info.role == Role.EXPERT:
            count = np.arange(info.shape[0], 0, -1).astype(np.float32)
            count[-1] = 0
            sums = rng.gamma(1.0, 1.0, (info.shape[0], n)) * count[:, None]
        else:
            count = np.full(1, 8, np.float32)
            slices = info.shape[0] if len(info.shape) == 3 else 1
            sums = rng.gamma(1.0, 1.0, (1, slices * n)) + 0.05
        entries[name] = ImatrixEntry(sums.astype(np.float32), count)
    return Stats({}, entries, 512, 512)
