"""gpt-oss: experts in MXFP4 with gate and up in turn, biases everywhere, sinks, every other layer with a window."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.decoder_sizes import decoder_sizes
from collab_plugin.checkpoint.families.family import Conversion, Decoder, Family
from collab_plugin.checkpoint.families.gguf_keys import (
    GROUPED_KEYS,
    Key,
    expert_keys,
    head_keys,
    rope_keys,
    rope_parameters,
)
from collab_plugin.checkpoint.families.tensors import (
    BIASES,
    GROUPED_QUERY,
    OUTSIDE_BLOCKS,
    Sizes,
    TensorRule,
    block_tensor,
    fused_experts,
    router_weights,
)
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    _check_layers(c)
    if c.get("rope_parameters") is None and c.get("rope_scaling") is None:
        raise CollabError(f"{c.where} has neither rope_scaling nor rope_parameters; gpt-oss scales rope")
    return head_keys(c.integer("head_dim")) | rope_keys(c)


def _check_layers(c: Config) -> None:
    kinds = c.kinds("layer_types", ("sliding_attention", "full_attention"))
    if kinds is not None and any((kind == "full_attention") != layer % 2 for layer, kind in enumerate(kinds)):
        raise CollabError(f"{c.where} has layer_types that llama.cpp's gpt-oss does not compute: it has a window in "
                          "every other layer, the first one included")  # fmt: skip


def _notes(c: Config) -> list[str]:
    if rope_parameters(c).get("truncate") is not False:
        return []
    return ["llama.cpp rounds the channels between which YaRN interpolates to whole ones, config.json says not to"]


def _sizes(c: Config) -> Sizes:
    return decoder_sizes(c, head="head_dim", experts="num_local_experts", expert_width="intermediate_size")


def _experts(name: str, stored: str, part: int, parts: int, packed: bool) -> tuple[TensorRule, ...]:
    """One projection and its bias: rows of outputs where they are packed, else rows of inputs."""
    outputs, inputs = ("2*expert_width", "hidden") if parts == 2 else ("hidden", "expert_width")
    shape = f"experts {outputs} {inputs}" if packed else f"experts {inputs} {outputs}"
    weights = fused_experts(part, parts, interleaved=parts == 2, transposed=not packed)
    biases = fused_experts(part, parts, interleaved=parts == 2)
    return (
        block_tensor(stored, f"{name}.weight", shape, weights, "experts"),
        block_tensor(f"{stored}_bias", f"{name}.bias", f"experts {outputs}", biases, "experts"),
    )


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    quantization = c.get("quantization_config")
    packed = isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4"
    return (
        *OUTSIDE_BLOCKS,
        block_tensor("input_layernorm.weight", "attn_norm.weight", "hidden"),
        block_tensor("post_attention_layernorm.weight", "post_attention_norm.weight", "hidden"),
        *GROUPED_QUERY,
        *BIASES,
        block_tensor("self_attn.o_proj.bias", "attn_output.bias", "hidden"),
        block_tensor("self_attn.sinks", "attn_sinks.weight", "heads"),
        router_weights("mlp.router.weight"),
        block_tensor("mlp.router.bias", "ffn_gate_inp.bias", "experts", layers="experts"),
        *_experts("ffn_gate_exps", "mlp.experts.gate_up_proj", 0, 2, packed),
        *_experts("ffn_up_exps", "mlp.experts.gate_up_proj", 1, 2, packed),
        *_experts("ffn_down_exps", "mlp.experts.down_proj", 0, 1, packed),
    )


GPT_OSS = Family(
    name="gpt-oss",
    classes=("GptOssForCausalLM",),
    architecture="gpt-oss",
    expert_counts=("num_local_experts",),
    router=("router.weight", "router.bias"),
    remark="MXFP4 is copied as it is; llama.cpp rounds where YaRN begins, noted where config.json says not to",
    decoder=Decoder("sinks"),
    conversion=Conversion(
        config_class="GptOssConfig",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 131072,
            "intermediate_size": 2880,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "sliding_window": 128,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "hidden_act": "silu",
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (True,),
            "swiglu_alpha": (1.702,),
            "swiglu_limit": (7.0,),
            "tie_word_embeddings": (False,),
        },
        keys=(
            *GROUPED_KEYS,
            Key("attention.sliding_window", "sliding_window"),
            *expert_keys("num_local_experts", "intermediate_size"),
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        notes=_notes,
        ignored=frozenset(("experts_per_token", "initial_context_length")),
    ),
)
