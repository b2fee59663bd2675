"""Qwen's gated delta nets: sizes, keys and orders of heads that Qwen3-Next and Qwen3.5 share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_KEYS, Key, expert_keys, flags, head_keys, rope_keys, u32
from collab_plugin.checkpoint.families.tensors import Sizes, TensorRule, block_tensor, plus_one
from collab_plugin.checkpoint.rearranged_sources import Order
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_EVERY = 4  # layers to one of full attention, where neither layer_types nor full_attention_interval says so

LINEAR_KEYS = (
    *GROUPED_KEYS,
    Key("ssm.conv_kernel", "linear_conv_kernel_dim"),
    Key("ssm.state_size", "linear_key_head_dim"),
    Key("ssm.group_count", "linear_num_key_heads"),
    Key("ssm.time_step_rank", "linear_num_value_heads"),
    *expert_keys(),
    Key("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
)

LINEAR_DEFAULTS: Mapping[str, int] = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


def is_linear(c: Config, layer: int) -> bool:
    """Whether a layer is a delta net; CollabError for a list of layers of another length or with another kind."""
    kinds = c.kinds("layer_types", ("linear_attention", "full_attention"))
    if kinds is None:
        return (layer + 1) % (c.get("full_attention_interval") or _EVERY) != 0
    return kinds[layer] == "linear_attention"


LAYER_SETS = {"linear": is_linear, "full": lambda c, layer: not is_linear(c, layer)}


def linear_keys(c: Config) -> dict[str, MetaValue]:
    """Keys of delta nets and of the attention between them."""
    if c.integer("linear_key_head_dim") != c.integer("linear_value_head_dim"):
        raise CollabError(
            f"{c.where} has linear_key_head_dim and linear_value_head_dim apart; llama.cpp has one length"
        )
    head, layers = c.integer("head_dim"), range(c.integer("num_hidden_layers"))
    return {
        "ssm.inner_size": u32(c.integer("linear_value_head_dim") * c.integer("linear_num_value_heads")),
        "full_attention_interval": u32(c.get("full_attention_interval") or _EVERY),
        "attention.recurrent_layers": flags(is_linear(c, layer) for layer in layers),
        **head_keys(head),
        **rope_keys(c, head),
    }


def linear_sizes(c: Config) -> Sizes:
    heads, length = c.integer("linear_num_key_heads"), c.integer("linear_key_head_dim")
    values, value = c.integer("linear_num_value_heads"), c.integer("linear_value_head_dim")
    if heads < 1 or values % heads:
        raise CollabError(f"{c.where} has {values} heads of values for {heads} of keys, which do not divide them")
    return {
        **decoder_sizes(c, head="head_dim", experts="num_experts", expert_width="moe_intermediate_size"),
        "shared_width": c.integer("shared_expert_intermediate_size"),
        "key_heads": heads,
        "key_length": length,
        "value_heads": values,
        "value_length": value,
        "values": values * value,
        "qkv": 2 * heads * length + values * value,
        "qkvz": 2 * heads * length + 2 * values * value,
        "kernel": c.integer("linear_conv_kernel_dim"),
    }


def queries_keys_values(sizes: Sizes) -> Order:
    """Of rows that each head of keys has together (its query, key, values, gates): all queries, keys, and values."""
    length, value = sizes["key_length"], sizes["values"] // sizes["key_heads"]
    rows = np.arange(sizes["qkvz"]).reshape(sizes["key_heads"], -1)
    parts = (rows[:, :length], rows[:, length : 2 * length], rows[:, 2 * length : 2 * length + value])
    return np.concatenate([part.reshape(-1) for part in parts])


def gates(sizes: Sizes) -> Order:
    """Of the same rows those of the gates."""
    first = 2 * sizes["key_length"] + sizes["values"] // sizes["key_heads"]
    return np.arange(sizes["qkvz"]).reshape(sizes["key_heads"], -1)[:, first:].reshape(-1)


def heads_in_turn(sizes: Sizes) -> Order:
    """Heads of values of one head of keys behind each other, to: the first one of each head of keys, the second ..."""
    return np.arange(sizes["value_heads"]).reshape(sizes["key_heads"], -1).T.reshape(-1)


def values_in_turn(sizes: Sizes) -> Order:
    """`heads_in_turn` with the channels of each head."""
    return np.arange(sizes["values"]).reshape(sizes["value_heads"], -1)[heads_in_turn(sizes)].reshape(-1)


def values_last_in_turn(sizes: Sizes) -> Order:
    """Rows of queries and keys as they are, then `values_in_turn`."""
    first = sizes["qkv"] - sizes["values"]
    return np.concatenate([np.arange(first), first + values_in_turn(sizes)])


FULL_ATTENTION = (
    block_tensor("self_attn.q_proj.weight", "attn_q.weight", "2*heads*head hidden", layers="full"),
    block_tensor("self_attn.k_proj.weight", "attn_k.weight", "kv_heads*head hidden", layers="full"),
    block_tensor("self_attn.v_proj.weight", "attn_v.weight", "kv_heads*head hidden", layers="full"),
    block_tensor("self_attn.o_proj.weight", "attn_output.weight", "hidden heads*head", layers="full"),
    block_tensor("self_attn.q_norm.weight", "attn_q_norm.weight", "head", plus_one, "full"),
    block_tensor("self_attn.k_norm.weight", "attn_k_norm.weight", "head", plus_one, "full"),
)
"""Attention whose queries bring a gate each."""

NORMS = (
    TensorRule("model.norm.weight", "output_norm.weight", "hidden", plus_one, "outside"),
    block_tensor("input_layernorm.weight", "attn_norm.weight", "hidden", plus_one),
    block_tensor("post_attention_layernorm.weight", "post_attention_norm.weight", "hidden", plus_one),
)
