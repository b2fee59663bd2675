"""Llama-4: experts fused and transposed, router before the experts, a shared one; three layers of four in chunks."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import GROUPED_KEYS, Key, expert_keys, head_keys, rope_keys
from collab_plugin.checkpoint.families.tensors import (
    BLOCK_NORMS,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    dense_feed_forward,
    fused_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_CHUNK, _EVERY = 8192, 4  # of llama.cpp's graph


def _keys(c: Config) -> dict[str, MetaValue]:
    layers = range(c.integer("num_hidden_layers"))
    rotated = c.get("no_rope_layers")
    if rotated and rotated != [int((layer + 1) % _EVERY != 0) for layer in layers]:
        raise CollabError(f"{c.where} has no_rope_layers other than every fourth, which llama.cpp does not compute")
    return head_keys(c.integer("head_dim"), "rope.dimension_count") | rope_keys(c)


def _dense(c: Config, layer: int) -> bool:
    step = c.integer("interleave_moe_layer_step")
    return step < 1 or (layer + 1) % step != 0


def _sizes(c: Config) -> Sizes:
    widths = {"width": "intermediate_size_mlp", "expert_width": "intermediate_size"}
    return decoder_sizes(c, head="head_dim", experts="num_local_experts", **widths)


_BOTH, _ROWS = "feed_forward.experts.gate_up_proj", "experts hidden 2*expert_width"
_EXPERTS = (
    router_weights("feed_forward.router.weight"),
    block_tensor(_BOTH, "ffn_gate_exps.weight", _ROWS, fused_experts(0, 2, transposed=True), "experts"),
    block_tensor(_BOTH, "ffn_up_exps.weight", _ROWS, fused_experts(1, 2, transposed=True), "experts"),
    block_tensor(
        "feed_forward.experts.down_proj",
        "ffn_down_exps.weight",
        "experts expert_width hidden",
        fused_experts(transposed=True),
        "experts",
    ),
)


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *OUTSIDE_BLOCKS,
        *BLOCK_NORMS,
        *GROUPED_QUERY,
        *dense_feed_forward("feed_forward"),
        *_EXPERTS,
        *dense_feed_forward("feed_forward.shared_expert", "_shexp", "expert_width", "experts"),
    )


def _norms_queries(c: Config) -> bool:
    """llama.cpp takes the norms of queries and keys from the number of experts (src/models/llama4.cpp)."""
    return c.integer("num_local_experts") != 128


def _checked(c: Config) -> Sizes:
    if c.flag("use_qk_norm") != _norms_queries(c):
        raise CollabError(f"{c.where} has use_qk_norm = {c.flag('use_qk_norm')} with {c.integer('num_local_experts')} "
                          "experts; llama.cpp's llama4 does the opposite")  # fmt: skip
    return _sizes(c)


LLAMA4 = Family(
    name="llama4",
    classes=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    architecture="llama4",
    expert_counts=("num_local_experts",),
    blocks=("feed_forward",),
    router=("router.weight",),
    interleaved_rope=True,
    remark="the vision tower is dropped with a note, a pruned folder keeps it",
    vllm=False,
    conversion=Conversion(
        config_class="Llama4TextConfig",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 1,
            "max_position_embeddings": 131072,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "interleave_moe_layer_step": 1,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "use_qk_norm": True,
            "attention_chunk_size": _CHUNK,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "attention_chunk_size": (_CHUNK,),
            "attn_temperature_tuning": (True, 4),
            "floor_scale": (8192,),
            "attn_scale": (0.1,),
        },
        keys=(
            *(key for key in GROUPED_KEYS if key.gguf != "feed_forward_length"),
            Key("feed_forward_length", "intermediate_size_mlp"),
            Key("interleave_moe_layer_step", "interleave_moe_layer_step"),
            *expert_keys("num_local_experts", "intermediate_size"),
        ),
        more_keys=_keys,
        sizes=_checked,
        tensors=_tensors,
        dense=_dense,
        nested="text_config",
        renames=(("language_model.", ""),),
        passed_over=(
            PassedOver("vision_model.", "the vision tower", copied=True),
            PassedOver("multi_modal_projector.", "the projector of pictures", copied=True),
        ),
        ignored=frozenset(
            (
                *("layer_types", "moe_layers", "no_rope_layer_interval", "vision_config", "boi_token_index"),
                *("eoi_token_index", "image_token_index", "for_llm_compressor"),
            )
        ),
    ),
)
