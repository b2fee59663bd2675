"""A GGUF of a trained family as the Hugging Face folder that vLLM reads: the inverse of checkpoint/safetensors.py.

Weights are dequantized to float32, so that vLLM computes with the very values that the artifact holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from collab_plugin import Checkpoint, NotOfferedError, open_gguf
from collab_plugin.checkpoint.checkpoint import F32

_SHARD = 2 * 10**9
"""Bytes of a file, and about what is in memory at a time."""
_COMMON = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
}
_QWEN3_MOE = {
    **_COMMON,
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
_DEEPSEEK = {
    **_COMMON,
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class _Keys:
    """The metadata below the architecture's prefix."""

    def __init__(self, checkpoint: Checkpoint, architecture: str) -> None:
        self._values = {
            name.removeprefix(f"{architecture}."): value.value for name, value in checkpoint.metadata.items()
        }

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise NotOfferedError(f"the artifact has no {key}, which vLLM's configuration needs")
        return self._values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)


@dataclass(frozen=True)
class _Family:
    names: Mapping[str, str]
    config: Callable[[_Keys, Checkpoint], dict[str, Any]]


def _common(keys: _Keys, checkpoint: Checkpoint) -> dict[str, Any]:
    if keys.get("rope.scaling.type", "none") != "none":
        raise NotOfferedError("artifacts with scaled rope are not translated for vLLM")
    return {
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "attention_bias": False,
        "hidden_size": keys["embedding_length"],
        "intermediate_size": keys["feed_forward_length"],
        "max_position_embeddings": keys["context_length"],
        "moe_intermediate_size": keys["expert_feed_forward_length"],
        "num_attention_heads": keys["attention.head_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "num_hidden_layers": keys["block_count"],
        "rms_norm_eps": keys["attention.layer_norm_rms_epsilon"],
        "rope_theta": keys["rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in checkpoint.tensors,
        "vocab_size": checkpoint.tensors["token_embd.weight"].shape[0],
    }


def _qwen3moe(keys: _Keys, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **_common(keys, checkpoint),
        "decoder_sparse_step": 1,
        "head_dim": keys["attention.key_length"],
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "num_experts": keys["expert_count"],
        "num_key_value_heads": keys["attention.head_count_kv"],
    }


def _deepseek2(keys: _Keys, checkpoint: Checkpoint) -> dict[str, Any]:
    rope = keys["rope.dimension_count"]
    biased = any(name.endswith("exp_probs_b.bias") for name in checkpoint.tensors)
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **_common(keys, checkpoint),
        "first_k_dense_replace": keys.get("leading_dense_block_count", 0),
        "kv_lora_rank": keys["attention.kv_lora_rank"],
        "moe_layer_freq": 1,
        "n_group": keys.get("expert_group_count", 1),
        "n_routed_experts": keys["expert_count"],
        "n_shared_experts": keys.get("expert_shared_count", 0),
        "norm_topk_prob": keys.get("expert_weights_norm", False),
        "num_key_value_heads": keys["attention.head_count"],
        "num_nextn_predict_layers": 0,
        "q_lora_rank": keys.get("attention.q_lora_rank"),
        "qk_nope_head_dim": keys["attention.key_length_mla"] - rope,
        "qk_rope_head_dim": rope,
        "rope_interleave": True,
        "routed_scaling_factor": keys.get("expert_weights_scale", 1.0),
        "scoring_func": {1: "softmax", 2: "sigmoid"}[keys["expert_gating_func"]],
        "topk_group": keys.get("expert_group_used_count", 1),
        "topk_method": "noaux_tc" if biased else "greedy",
        "v_head_dim": keys["attention.value_length_mla"],
    }


_FAMILIES = {"qwen3moe": _Family(_QWEN3_MOE, _qwen3moe), "deepseek2": _Family(_DEEPSEEK, _deepseek2)}


def write_folder(artifact: Path, folder: Path, *, memory: int) -> None:
    """Write config.json and float32 safetensors of ``artifact`` below ``folder``; no tokenizer.

    NotOfferedError for an architecture without a table here, and when the weights take more than ``memory``
    bytes, the machine's.
    """
    checkpoint = open_gguf(artifact)
    architecture = checkpoint.metadata["general.architecture"].value
    family = _FAMILIES.get(architecture)
    if family is None:
        raise NotOfferedError(f"{architecture} is not translated for vLLM; only {', '.join(_FAMILIES)} are")
    size = 4 * sum(info.n_elements for info in checkpoint.tensors.values())
    if size > memory // 2:
        raise NotOfferedError(f"dequantized for vLLM the artifact takes {size / 1e9:.1f} GB, half of memory is less")
    folder.mkdir()
    config = family.config(_Keys(checkpoint, architecture), checkpoint)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_shards(folder, _tensors(checkpoint, family))


def _tensors(checkpoint: Checkpoint, family: _Family) -> Iterator[tuple[str, F32]]:
    """Tensors under the names of the Hugging Face checkpoint."""
    for name, info in checkpoint.tensors.items():
        if info.layer is None:
            if name in _OUTSIDE:
                yield _OUTSIDE[name], checkpoint.read(name)
            continue
        prefix = f"model.layers.{info.layer}."
        part = name.split(".", 2)[2]
        if part.endswith("_exps.weight"):
            kind = part.removeprefix("ffn_").removesuffix("_exps.weight")
            for expert in range(info.shape[0]):
                yield f"{prefix}mlp.experts.{expert}.{kind}_proj.weight", checkpoint.read(name, expert=expert)
        elif part == "attn_k_b.weight":
            keys, values = checkpoint.read(name), checkpoint.read(name.replace("attn_k_b", "attn_v_b"))
            heads = np.concatenate([keys.transpose(0, 2, 1), values], axis=1)
            yield f"{prefix}self_attn.kv_b_proj.weight", heads.reshape(-1, heads.shape[-1])
        elif part != "attn_v_b.weight":
            if part not in family.names:
                raise NotOfferedError(f"{name} is not translated for vLLM")
            yield prefix + family.names[part], checkpoint.read(name)


def _write_shards(folder: Path, tensors: Iterator[tuple[str, F32]]) -> None:
    places: dict[str, str] = {}
    shard: dict[str, F32] = {}

    def flush() -> None:
        file = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / file)
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, values in tensors:
        shard[name] = np.ascontiguousarray(values)
        if sum(kept.nbytes for kept in shard.values()) > _SHARD:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
