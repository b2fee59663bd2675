"""DeepSeek-V4(-Flash): experts of four bits, first layers routed by a table of tokens, compressed attention,
hyper-connections."""

from __future__ import annotations

import numpy as np
from gguf import GGUFValueType

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.deepseek_v32 import INDEXER_KEYS
from collab_plugin.checkpoint.families.family import Conversion, Family, PassedOver
from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS, Key, expert_keys, f32, integers, scaling_keys, u32
from collab_plugin.checkpoint.families.tensors import Sizes, Take, TensorRule, block_tensor, stacked
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

_RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
_SQRT_SOFTPLUS = 4  # of expert_gating_func (src/llama-hparams.h), which older gguf-py has no name for
_SPARSE, _HEAVY = 4, 128  # ratios of layers with an indexer and without; no others (src/models/deepseek4.cpp)


def _ratios(c: Config) -> list[int]:
    """Tokens that are compressed to one, by layer; 0 where attention has a window only."""
    count, told = c.integer("num_hidden_layers"), c.get("compress_ratios")
    if told is None:
        rates = {**_RATIOS, **(c.get("compress_rates") or {})}
        told = [rates.get(kind) for kind in c.get("layer_types") or ()]
    found = told[:count] if isinstance(told, list) else []
    if len(found) != count or any(ratio not in (0, _SPARSE, _HEAVY) for ratio in found):
        raise CollabError(
            f"{c.where} has no compress_ratios of 0, {_SPARSE} or {_HEAVY}, nor layer_types, for each of {count} layers"
        )
    return found


def _hash_layers(c: Config) -> int:
    """How many of the first layers are routed by a table of tokens."""
    kinds = c.get("mlp_layer_types")
    if kinds is None:
        return c.integer("num_hash_layers")
    count = next((i for i, kind in enumerate(kinds) if kind != "hash_moe"), len(kinds))
    if "hash_moe" in kinds[count:]:
        raise CollabError(f"{c.where} has mlp_layer_types with a hash_moe behind another; llama.cpp has them first")
    return count


def _rotated(c: Config) -> int:
    if c.get("qk_rope_head_dim") is not None:
        return c.integer("qk_rope_head_dim")
    factor = c.get("partial_rotary_factor")
    return int(c.integer("head_dim") * (64 / 512 if factor is None else c.number("partial_rotary_factor")))


def _rope(c: Config) -> dict[str, MetaValue]:
    """Base of the windows and of what is compressed, and how the latter's is scaled."""
    told = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if not isinstance(told, dict):
        raise CollabError(f"{c.where} has a rope_scaling that is no object")
    main, compress = told.get("main", {}), told.get("compress", told)
    bases = Config(main, f"{c.where} rope_parameters", {"rope_theta": c.get("rope_theta")})
    rest = {key: value for key, value in compress.items() if key != "attention_factor"}
    scaled = Config(rest, f"{c.where} rope_scaling", {"rope_theta": c.get("compress_rope_theta")})
    return {
        "rope.freq_base": f32(bases.number("rope_theta")),
        "rope.dimension_count": u32(_rotated(c)),
        "attention.compress_rope_freq_base": f32(scaled.number("rope_theta") if "compress" in told
                                                 else c.number("compress_rope_theta")),
        **scaling_keys(c, scaled),
    }  # fmt: skip


def _keys(c: Config) -> dict[str, MetaValue]:
    limits = [float(np.float32(c.number("swiglu_limit")))] * c.integer("num_hidden_layers")
    clamp = MetaValue(limits, GGUFValueType.ARRAY, GGUFValueType.FLOAT32)
    return {
        "attention.compress_ratios": integers(_ratios(c)),
        "hash_layer_count": u32(_hash_layers(c)),
        "embedding_length_out": u32(c.integer("hidden_size") * c.integer("hc_mult")),
        "swiglu_clamp_exp": clamp,
        "swiglu_clamp_shexp": clamp,
        **_rope(c),
    }


def _sizes(c: Config) -> Sizes:
    mult = c.integer("hc_mult")
    return {
        "vocabulary": c.integer("vocab_size"),
        "hidden": c.integer("hidden_size"),
        "heads": c.integer("num_attention_heads"),
        "head": c.integer("head_dim"),
        "q_rank": c.integer("q_lora_rank"),
        "groups": c.integer("o_groups"),
        "out_rank": c.integer("o_lora_rank"),
        "group_width": c.integer("num_attention_heads") * c.integer("head_dim") // max(c.integer("o_groups"), 1),
        "heavy": _HEAVY,
        "index_heads": c.integer("index_n_heads"),
        "index_head": c.integer("index_head_dim"),
        "streams": mult,
        "mixes": (2 + mult) * mult,
        "experts": c.integer("n_routed_experts"),
        "used": c.integer("num_experts_per_tok"),
        "expert_width": c.integer("moe_intermediate_size"),
        "shared": c.integer("n_shared_experts"),
    }


def _rule(stored: str, gguf: str, shape: str, layers: str = "all", take: Take | None = None) -> TensorRule:
    return block_tensor(stored, f"{gguf}.weight", shape, take, layers, prefix="layers.{layer}.")


def _compressor(coefficient: int, ratio: str, layers: str) -> tuple[TensorRule, ...]:
    wide = "head" if coefficient == 1 else f"{coefficient}*head"
    return (
        _rule("attn.compressor.wkv.weight", "attn_compressor_kv", f"{wide} hidden", layers),
        _rule("attn.compressor.wgate.weight", "attn_compressor_gate", f"{wide} hidden", layers),
        _rule("attn.compressor.ape", "attn_compressor_ape", f"{ratio} {wide}", layers),
        _rule("attn.compressor.norm.weight", "attn_compressor_norm", "head", layers),
    )


_OUTSIDE = (
    TensorRule("embed.weight", "token_embd.weight", "vocabulary hidden", layers="outside"),
    TensorRule("norm.weight", "output_norm.weight", "hidden", layers="outside"),
    TensorRule("head.weight", "output.weight", "vocabulary hidden", layers="outside"),
    TensorRule("hc_head_fn", "output_hc_fn.weight", "streams streams*hidden", layers="outside"),
    TensorRule("hc_head_base", "output_hc_base.weight", "streams", layers="outside"),
    TensorRule("hc_head_scale", "output_hc_scale.weight", "1", layers="outside"),
)
_ATTENTION = (
    _rule("attn_norm.weight", "attn_norm", "hidden"),
    _rule("attn.attn_sink", "attn_sinks", "heads"),
    _rule("attn.wq_a.weight", "attn_q_a", "q_rank hidden"),
    _rule("attn.q_norm.weight", "attn_q_a_norm", "q_rank"),
    _rule("attn.wq_b.weight", "attn_q_b", "heads*head q_rank"),
    _rule("attn.wkv.weight", "attn_kv", "head hidden"),
    _rule("attn.kv_norm.weight", "attn_kv_a_norm", "head"),
    _rule("attn.norm.weight", "attn_kv_a_norm", "head"),  # as transformers saves it
    _rule("attn.wo_a.weight", "attn_output_a", "groups*out_rank group_width"),
    _rule("attn.wo_b.weight", "attn_output_b", "hidden groups*out_rank"),
)
_INDEXER = (
    _rule("attn.indexer.weights_proj.weight", "indexer.proj", "index_heads hidden", "sparse"),
    _rule("attn.indexer.wq_b.weight", "indexer.attn_q_b", "index_heads*index_head q_rank", "sparse"),
    _rule("attn.indexer.compressor.wkv.weight", "indexer_compressor_kv", "2*index_head hidden", "sparse"),
    _rule("attn.indexer.compressor.wgate.weight", "indexer_compressor_gate", "2*index_head hidden", "sparse"),
    _rule("attn.indexer.compressor.ape", "indexer_compressor_ape", f"{_SPARSE} 2*index_head", "sparse"),
    _rule("attn.indexer.compressor.norm.weight", "indexer_compressor_norm", "index_head", "sparse"),
)
_STREAMS = tuple(
    _rule(f"hc_{part}_{name}", f"hc_{part}_{name}", shape)
    for part in ("attn", "ffn")
    for name, shape in (("fn", "mixes streams*hidden"), ("base", "mixes"), ("scale", "3"))
)
_EXPERTS = tuple(
    rule
    for stored, gguf, shape in (("w1", "gate", "expert_width hidden"), ("w3", "up", "expert_width hidden"),
                                ("w2", "down", "hidden expert_width"))
    for rule in (
        _rule(f"ffn.experts.{{expert}}.{stored}.weight", f"ffn_{gguf}_exps", shape, take=stacked),
        _rule(f"ffn.shared_experts.{stored}.weight", f"ffn_{gguf}_shexp", shape.replace("expert", "shared*expert")),
    )
)  # fmt: skip


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (
        *_OUTSIDE,
        *_ATTENTION,
        *_compressor(2, str(_SPARSE), "sparse"),
        *_compressor(1, "heavy", "heavy"),
        *_INDEXER,
        *_STREAMS,
        _rule("ffn_norm.weight", "ffn_norm", "hidden"),
        _rule("ffn.gate.weight", "ffn_gate_inp", "experts hidden"),
        _rule("ffn.gate.tid2eid", "ffn_gate_tid2eid", "vocabulary used", "hash"),
        block_tensor("ffn.gate.bias", "exp_probs_b.bias", "experts", None, "routed", prefix="layers.{layer}."),
        block_tensor("ffn.gate.bias_vl", "exp_probs_b_vl.bias", "experts", None, "all", True, "layers.{layer}."),
        *_EXPERTS,
    )


DEEPSEEK_V4 = Family(
    name="deepseek-v4",
    classes=("DeepseekV4ForCausalLM",),
    architecture="deepseek4",
    expert_counts=("n_routed_experts", "num_local_experts"),
    blocks=("ffn",),
    router=("gate.weight", "gate.bias"),
    remark="tables of hash-routed layers are remapped when experts are dropped; a pruned model is written as GGUF only",
    vllm=False,
    conversion=Conversion(
        config_class="DeepseekV4Config",
        defaults={
            "max_position_embeddings": 1048576,
            "moe_intermediate_size": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "compress_rope_theta": 160000.0,
            "num_experts_per_tok": 6,
            "n_shared_experts": 1,
            "head_dim": 512,
            "q_lora_rank": 1024,
            "sliding_window": 128,
            "o_groups": 8,
            "o_lora_rank": 1024,
            "index_n_heads": 64,
            "index_head_dim": 128,
            "index_topk": 512,
            "hc_mult": 4,
            "hc_sinkhorn_iters": 20,
            "hc_eps": 1e-6,
            "swiglu_limit": 10.0,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
            "scoring_func": "sqrtsoftplus",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            # Not transformers' key, which has it in mlp_layer_types.
            "num_hash_layers": 3,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "scoring_func": ("sqrtsoftplus",),
            "tie_word_embeddings": (False,),
            "n_shared_experts": (1,),
            "hc_mult": (4,),
        },
        renormalises="norm_topk_prob",
        keys=(
            *(key for key in DECODER_KEYS if key.gguf != "feed_forward_length"),
            Key("attention.head_count_kv", 1),
            Key("attention.key_length", "head_dim"),
            Key("attention.value_length", "head_dim"),
            Key("attention.q_lora_rank", "q_lora_rank"),
            Key("attention.sliding_window", "sliding_window"),
            *INDEXER_KEYS,
            Key("attention.output_group_count", "o_groups"),
            Key("attention.output_lora_rank", "o_lora_rank"),
            Key("hyper_connection.count", "hc_mult"),
            Key("hyper_connection.sinkhorn_iterations", "hc_sinkhorn_iters"),
            Key("hyper_connection.epsilon", "hc_eps", float),
            *expert_keys("n_routed_experts"),
            Key("expert_shared_count", "n_shared_experts"),
            Key("expert_weights_scale", "routed_scaling_factor", float),
            Key("expert_gating_func", _SQRT_SOFTPLUS),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        layer_sets={
            "sparse": lambda c, layer: _ratios(c)[layer] == _SPARSE,
            "heavy": lambda c, layer: _ratios(c)[layer] == _HEAVY,
            "hash": lambda c, layer: layer < _hash_layers(c),
            "routed": lambda c, layer: layer >= _hash_layers(c),
        },
        # The published names have no prefix; transformers saves with one.
        renames=(("model.embed_tokens.", "embed."), ("model.hc_head.hc_", "hc_head_"), ("model.", "")),
        passed_over=(
            PassedOver("mtp.", "MTP layers"),
            PassedOver("vision.", "the vision tower", copied=True),
            PassedOver("aligner.", "what brings images to the decoder", copied=True),
            PassedOver("image_", "marks of images", copied=True),
        ),
        ignored=frozenset(
            (
                *(
                    "num_key_value_heads",
                    "num_nextn_predict_layers",
                    "intermediate_size",
                    "topk_method",
                    "expert_dtype",
                ),
                *("topk_group", "n_group", "layer_types", "compress_rates", "mlp_layer_types", "compress_ratios"),
                *("partial_rotary_factor", "qk_rope_head_dim", "num_hash_layers", "default_num_hash_layers"),
            )
        ),
    ),
)
