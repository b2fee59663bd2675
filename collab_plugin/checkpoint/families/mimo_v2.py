"""MiMo-V2: sigmoid router with bias, layers with a window that have other heads of keys, sinks and rotary bases."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import (
    DECODER_KEYS,
    SIGMOID,
    Key,
    expert_keys,
    f32,
    integers,
    rope_keys,
    rope_parameters,
    u32,
)
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    OUTSIDE_BLOCKS,
    ROUTER_BIAS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    gated_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def _kinds(c: Config, key: str, legacy: str, names: tuple[str, str]) -> list[bool]:
    """For each layer whether it is of the second kind: told by words, or by 0 and 1 under an older key."""
    told, count = c.get(key), c.integer("num_hidden_layers")
    if told is None:
        told = c.get(legacy)
        told = [names[flag] if flag in (0, 1) else flag for flag in told] if isinstance(told, list) else told
    if not isinstance(told, list) or len(told) != count or not set(told) <= set(names):
        raise CollabError(
            f"{c.where} needs {key} (or {legacy}) with {names[0]} or {names[1]} for each of {count} layers"
        )
    return [kind == names[1] for kind in told]


def _windows(c: Config) -> list[bool]:
    return _kinds(c, "layer_types", "hybrid_layer_pattern", ("full_attention", "sliding_attention"))


def _sparse(c: Config) -> list[bool]:
    return _kinds(c, "mlp_layer_types", "moe_layer_freq", ("dense", "sparse"))


def _heads_of_windows(c: Config) -> int:
    """transformers doubles the heads of keys where the key of the published models is absent."""
    return 2 * c.integer("num_key_value_heads") if c.get("swa_num_key_value_heads") is None else c.integer(
        "swa_num_key_value_heads"
    )  # fmt: skip


def _keys(c: Config) -> dict[str, MetaValue]:
    windows, heads = _windows(c), c.integer("num_key_value_heads")
    full, window = (rope_parameters(c, kind) for kind in ("full_attention", "sliding_attention"))
    for theirs, own in (("swa_head_dim", "head_dim"), ("swa_v_head_dim", "v_head_dim"),
                        ("swa_num_attention_heads", "num_attention_heads")):  # fmt: skip
        if c.get(theirs) not in (None, c.get(own)):
            raise CollabError(f"{c.where} has {theirs} = {c.get(theirs)} and {own} = {c.get(own)}; llama.cpp has one")
    if window.get("partial_rotary_factor") != full.get("partial_rotary_factor"):
        raise CollabError(f"{c.where} rotates other parts of heads in layers with a window; llama.cpp has one part")
    told, epsilon = c.get("swa_rope_theta"), c.get("layernorm_epsilon")
    return {
        **({} if epsilon is None else {"attention.layer_norm_rms_epsilon": f32(c.number("layernorm_epsilon"))}),
        "attention.head_count_kv": integers(_heads_of_windows(c) if windowed else heads for windowed in windows),
        "attention.sliding_window_pattern": integers(map(int, windows)),
        "attention.key_length": u32(c.integer("head_dim")),
        "attention.value_length": u32(c.integer("v_head_dim")),
        "rope.freq_base_swa": f32(window.number("rope_theta") if told is None else c.number("swa_rope_theta")),
        **rope_keys(c, c.integer("head_dim"), "full_attention"),
    }


def _sizes(c: Config) -> Sizes:
    own = {"width": "intermediate_size", "value": "v_head_dim", "full_heads": "num_key_value_heads"}
    sizes = decoder_sizes(c, experts="n_routed_experts", expert_width="moe_intermediate_size", **own)
    return {**sizes, "window_heads": _heads_of_windows(c)}


def _attention(kind: str) -> tuple[TensorRule, ...]:
    return (
        block_tensor("self_attn.k_proj.weight", "attn_k.weight", f"{kind}_heads*head hidden", layers=kind),
        block_tensor("self_attn.v_proj.weight", "attn_v.weight", f"{kind}_heads*value hidden", layers=kind),
    )


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        block_tensor("self_attn.q_proj.weight", "attn_q.weight", "heads*head hidden"),
        *_attention("full"),
        *_attention("window"),
        block_tensor("self_attn.o_proj.weight", "attn_output.weight", "hidden heads*value"),
        block_tensor("self_attn.attention_sink_bias", "attn_sinks.weight", "heads", optional=True),
        *dense_feed_forward(),
        router_weights(),
        ROUTER_BIAS,
        *gated_experts(),
    )


MIMO_V2 = Family(
    name="mimo-v2",
    classes=("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
    architecture="mimo2",
    expert_counts=("n_routed_experts",),
    router=("gate.weight", "gate.e_score_correction_bias"),
    remark="MTP layers are dropped with a note",
    vllm=False,
    conversion=Conversion(
        config_class="MiMoV2FlashConfig",
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 192,
            "v_head_dim": 128,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 131072,
            "intermediate_size": 16384,
            "moe_intermediate_size": 2048,
            "rms_norm_eps": 1e-5,
            "sliding_window": 128,
            "attention_value_scale": 0.707,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "routed_scaling_factor": (1.0, None),
            "n_group": (1,),
            "topk_group": (1,),
            "tie_word_embeddings": (False,),
            "scoring_func": (None, "sigmoid"),
            "topk_method": (None, "noaux_tc"),
            "n_shared_experts": (None, 0),
            "add_full_attention_sink_bias": (None, False),
        },
        renormalises="norm_topk_prob",
        keys=(
            *DECODER_KEYS,
            Key("attention.sliding_window", "sliding_window"),
            Key("attention.value_scale", "attention_value_scale", float, optional=True),
            *expert_keys("n_routed_experts"),
            SIGMOID,
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=lambda c, layer: not _sparse(c)[layer],
        layer_sets={"full": lambda c, layer: not _windows(c)[layer], "window": lambda c, layer: _windows(c)[layer]},
        passed_over=(PassedOver("model.mtp.", "MTP layers"),),
        ignored=frozenset(("add_swa_attention_sink_bias", "attention_chunk_size", "sliding_window_size")),
    ),
)
