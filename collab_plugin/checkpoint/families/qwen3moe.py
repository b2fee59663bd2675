"""Qwen3-MoE: softmax router renormalised over top-k, no shared expert."""

from __future__ import annotations

from gguf import MODEL_ARCH

from collab_plugin.checkpoint.families.family import EXPERTS, NORMS, Config, Family, common_keys, u32
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    if c.get("mlp_only_layers") or c.integer("decoder_sparse_step", 1) != 1:
        raise CollabError(f"{c.where} mixes dense layers in, which llama.cpp's qwen3moe does not know")
    if not c.get("norm_topk_prob", True):
        raise CollabError(f"{c.where} does not renormalise router weights, llama.cpp's qwen3moe always does")
    head = c.integer("head_dim", c.integer("hidden_size") // max(c.integer("num_attention_heads"), 1))
    return common_keys(c) | {
        "attention.head_count_kv": u32(c.integer("num_key_value_heads")),
        "attention.key_length": u32(head),
        "attention.value_length": u32(head),
        "expert_count": u32(c.integer("num_experts")),
    }


def _parts(c: Config, dense: bool) -> list[str]:
    attention = [f"attn_{part}.weight" for part in ("q", "k", "v", "q_norm", "k_norm", "output")]
    return [*NORMS, *attention, *EXPERTS]


QWEN3_MOE = Family(("Qwen3MoeForCausalLM",), MODEL_ARCH.QWEN3MOE, "num_experts", _keys, _parts)
