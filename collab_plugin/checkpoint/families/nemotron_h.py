"""Nemotron-3: layers of Mamba-2, of attention without a rotary embedding, or of experts with two matrices each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes, even_head
from collab_plugin.checkpoint.families.family import Conversion, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, expert_keys, flag, head_keys, integers, u32
from collab_plugin.checkpoint.families.tensors import (
    Sizes,
    TensorRule,
    block_tensor,
    folded,
    fused_experts,
    rotary_pairs,
    router_weights,
    squeezed,
)
from collab_plugin.formats.gguf_values import MetaValue

_MAMBA, _ATTENTION, _EXPERTS = "linear_attention", "full_attention", "moe"
_SIGNS = {"M": _MAMBA, "*": _ATTENTION, "E": _EXPERTS, "mamba": _MAMBA, "attention": _ATTENTION}


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The kinds of the layers, told by words or by a letter each, and how many there are."""
    kinds = config.get("layers_block_type") or config.get("hybrid_override_pattern")
    if not isinstance(kinds, (list, str)):
        return {}
    return {"layers_block_type": [_SIGNS.get(str(kind), kind) for kind in kinds], "num_hidden_layers": len(kinds)}


def _layers(c: Config, *kinds: str) -> list[bool]:
    """For each layer whether it is one of ``kinds``; CollabError where llama.cpp has no such layer beside experts."""
    told = c.kinds("layers_block_type", (_MAMBA, _ATTENTION, _EXPERTS))
    return [kind in kinds for kind in told or [_EXPERTS] * c.integer("num_hidden_layers")]


def _keys(c: Config) -> dict[str, MetaValue]:
    heads, width = c.integer("num_key_value_heads"), c.integer("moe_intermediate_size")
    return {
        "attention.head_count_kv": integers(heads if here else 0 for here in _layers(c, _ATTENTION)),
        "feed_forward_length": integers(width if here else 0 for here in _layers(c, _EXPERTS)),
        "ssm.inner_size": u32(c.integer("mamba_num_heads") * c.integer("mamba_head_dim")),
        **head_keys(c.integer("head_dim")),
        "rope.dimension_count": u32(even_head(c)),  # as the converter writes it; nothing is rotated
        "rope.scaling.finetuned": flag(False),
    }


def mamba_sizes(heads: int, head: int, groups: int, state: int) -> dict[str, int]:
    inner, states = heads * head, 2 * groups * state
    projected = 2 * inner + states + heads
    return {
        **{"mamba_heads": heads, "groups": groups, "inner": inner, "convolved": inner + states},
        "projected": projected,
    }


def _sizes(c: Config) -> Sizes:
    mamba = (c.integer(key) for key in ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size"))
    return decoder_sizes(
        c,
        experts="n_routed_experts",
        expert_width="moe_intermediate_size",
        shared_width="moe_shared_expert_intermediate_size",
        latent="hidden_size" if c.get("moe_latent_size") is None else "moe_latent_size",
        kernel="conv_kernel",
        **mamba_sizes(*mamba),
    )


def mamba_2(path: str) -> tuple[TensorRule, ...]:
    """A layer of Mamba-2, in the set of blocks "mamba"; of `mamba_sizes`."""
    return (
        block_tensor(f"{path}.in_proj.weight", "ssm_in.weight", "projected hidden", layers="mamba"),
        block_tensor(f"{path}.conv1d.weight", "ssm_conv1d.weight", "convolved 1 kernel", squeezed, "mamba"),
        block_tensor(f"{path}.conv1d.bias", "ssm_conv1d.bias", "convolved", layers="mamba", optional=True),
        block_tensor(f"{path}.dt_bias", "ssm_dt.bias", "mamba_heads", layers="mamba"),
        block_tensor(f"{path}.A_log", "ssm_a", "mamba_heads", folded("mamba_heads", lambda a: -np.exp(a)), "mamba"),
        block_tensor(f"{path}.D", "ssm_d", "mamba_heads", folded("mamba_heads"), "mamba"),
        block_tensor(f"{path}.norm.weight", "ssm_norm.weight", "inner", folded("groups"), "mamba"),
        block_tensor(f"{path}.out_proj.weight", "ssm_out.weight", "hidden inner", layers="mamba"),
    )


# Reordered as for a rotation, as the converter does it: without one it changes nothing.
_GROUPED_QUERY = (
    block_tensor("mixer.q_proj.weight", "attn_q.weight", "heads*head hidden", rotary_pairs("heads"), "attention"),
    block_tensor("mixer.k_proj.weight", "attn_k.weight", "kv_heads*head hidden", rotary_pairs("kv_heads"), "attention"),
    block_tensor("mixer.v_proj.weight", "attn_v.weight", "kv_heads*head hidden", layers="attention"),
    block_tensor("mixer.o_proj.weight", "attn_output.weight", "hidden heads*head", layers="attention"),
)


def _two_matrices() -> Iterator[TensorRule]:
    for part, shape in (("up", "expert_width latent"), ("down", "latent expert_width")):
        stored, gguf = f"mixer.experts.{{expert}}.{part}_proj.weight", f"ffn_{part}_exps.weight"
        yield block_tensor(stored, gguf, shape, layers="experts")
        yield block_tensor(f"mixer.experts.{part}_proj", gguf, f"experts {shape}", fused_experts(), "experts")


_SHARED = "mixer.shared_experts"
_LATENT = (
    block_tensor("mixer.fc1_latent_proj.weight", "ffn_latent_down.weight", "latent hidden", layers="experts"),
    block_tensor("mixer.fc2_latent_proj.weight", "ffn_latent_up.weight", "hidden latent", layers="experts"),
)


def _bias(name: str) -> TensorRule:
    return block_tensor(f"mixer.gate.{name}", "exp_probs_b.bias", "experts", layers="experts")


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        TensorRule("model.embeddings.weight", "token_embd.weight", "vocabulary hidden", layers="outside"),
        TensorRule("model.norm_f.weight", "output_norm.weight", "hidden", layers="outside"),
        TensorRule("lm_head.weight", "output.weight", "vocabulary hidden", layers="outside"),
        block_tensor("norm.weight", "attn_norm.weight", "hidden"),
        *mamba_2("mixer"),
        *_GROUPED_QUERY,
        router_weights("mixer.gate.weight"),
        _bias("e_score_correction_bias"),
        _bias("e_score_correction.bias"),
        *_two_matrices(),
        block_tensor(f"{_SHARED}.up_proj.weight", "ffn_up_shexp.weight", "shared_width hidden", layers="experts"),
        block_tensor(f"{_SHARED}.down_proj.weight", "ffn_down_shexp.weight", "hidden shared_width", layers="experts"),
        *(() if c.get("moe_latent_size") is None else _LATENT),
    )


NEMOTRON_H = Family(
    name="nemotron-h",
    classes=("NemotronHForCausalLM",),
    architecture="nemotron_h_moe",
    expert_counts=("n_routed_experts", "num_local_experts"),
    blocks=("mixer",),
    router=("gate.weight", "gate.e_score_correction_bias"),
    remark="Nemotron-3, experts of two matrices; MTP layers are dropped with a note",
    vllm=False,
    conversion=Conversion(
        config_class="NemotronHConfig",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 4096,
            "moe_intermediate_size": 7688,
            "moe_shared_expert_intermediate_size": 7688,
            "moe_latent_size": None,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "layer_norm_epsilon": 1e-5,
            "ssm_state_size": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "n_groups": 8,
            "conv_kernel": 4,
            "mlp_hidden_act": "relu2",
            "mamba_hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "use_bias": False,
            "mamba_proj_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={
            "mlp_hidden_act": ("relu2",),
            "mamba_hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "use_bias": (False,),
            "mamba_proj_bias": (False,),
            "sliding_window": (None,),
            "n_shared_experts": (1,),
        },
        renormalises="norm_topk_prob",
        keys=(
            *(key for key in DECODER_KEYS if key.config not in ("intermediate_size", "rms_norm_eps")),
            Key("attention.layer_norm_epsilon", "layer_norm_epsilon", float),
            Key("ssm.conv_kernel", "conv_kernel"),
            Key("ssm.state_size", "ssm_state_size"),
            Key("ssm.group_count", "n_groups"),
            Key("ssm.time_step_rank", "mamba_num_heads"),
            *expert_keys("n_routed_experts"),
            Key("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
            Key("expert_shared_count", "n_shared_experts"),
            Key("expert_group_count", "n_group"),
            Key("expert_group_used_count", "topk_group"),
            Key("expert_weights_scale", "routed_scaling_factor", float),
            Key("moe_latent_size", "moe_latent_size", optional=True),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        settled=_settled,
        dense=lambda c, layer: not _layers(c, _EXPERTS)[layer],
        layer_sets={
            "mamba": lambda c, layer: _layers(c, _MAMBA)[layer],
            "attention": lambda c, layer: _layers(c, _ATTENTION)[layer],
        },
        renames=(("backbone.", "model."),),
        passed_over=(PassedOver("mtp.", "MTP layers"),),
        ignored=frozenset(
            (
                *("hybrid_override_pattern", "intermediate_size", "rescale_prenorm_residual", "residual_in_fp32"),
                *("time_step_min", "time_step_max", "time_step_limit", "time_step_floor", "chunk_size", "expand"),
                *(
                    "mamba_ssm_cache_dtype",
                    "use_mamba_kernels",
                    "use_conv_bias",
                    "num_logits_to_keep",
                    "hidden_dropout",
                ),
                *("moe_shared_expert_overlap", "num_nextn_predict_layers", "mtp_layers_block_type"),
                *("mtp_hybrid_override_pattern", "hidden_dropout"),
            )
        ),
    ),
)
