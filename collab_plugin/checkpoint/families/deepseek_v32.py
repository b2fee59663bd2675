"""DeepSeek-V3.2: V3 with an indexer beside the attention, which picks the tokens that are looked at."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.deepseek_v3 import DEEPSEEK_V3, latent_keys, latent_sizes, latent_tensors
from collab_plugin.checkpoint.families.family import Family
from collab_plugin.checkpoint.families.gguf_keys import Key, u32
from collab_plugin.checkpoint.families.layer_kinds import behind_dense, leading_dense
from collab_plugin.checkpoint.families.tensors import Sizes, TensorRule, block_tensor
from collab_plugin.formats.gguf_values import MetaValue

_V3 = DEEPSEEK_V3.conversion
assert _V3 is not None


def _keys(c: Config) -> dict[str, MetaValue]:
    return latent_keys(c) | {"leading_dense_block_count": u32(leading_dense(c))}


def indexer_sizes(c: Config) -> dict[str, int]:
    return {"index_heads": c.integer("index_n_heads"), "index_head": c.integer("index_head_dim")}


def indexer_tensors(layers: str = "all") -> tuple[TensorRule, ...]:
    """What picks the tokens to look at, in the set of blocks ``layers``."""
    pairs = (
        ("wq_b.weight", "attn_q_b.weight", "index_heads*index_head q_rank"),
        ("wk.weight", "attn_k.weight", "index_head hidden"),
        ("k_norm.weight", "k_norm.weight", "index_head"),
        ("k_norm.bias", "k_norm.bias", "index_head"),
        ("weights_proj.weight", "proj.weight", "index_heads hidden"),
    )
    return tuple(block_tensor(f"self_attn.indexer.{a}", f"indexer.{b}", shape, layers=layers) for a, b, shape in pairs)


def _sizes(c: Config) -> Sizes:
    return {**latent_sizes(c), **indexer_sizes(c)}


def _tensors(c: Config) -> tuple[TensorRule, ...]:
    return (*latent_tensors(c), *indexer_tensors())


INDEXER_KEYS = (
    Key("attention.indexer.head_count", "index_n_heads"),
    Key("attention.indexer.key_length", "index_head_dim"),
    Key("attention.indexer.top_k", "index_topk"),
)

DEEPSEEK_V32 = Family(
    name="deepseek-v3.2",
    classes=("DeepseekV32ForCausalLM",),
    architecture="deepseek32",
    expert_counts=("n_routed_experts", "num_local_experts"),
    router=DEEPSEEK_V3.router,
    interleaved_rope=True,
    vllm=False,
    remark="compared with all tokens looked at: llama.cpp and transformers choose otherwise which ones to look at",
    conversion=replace(
        _V3,
        config_class="DeepseekV32Config",
        defaults={
            **_V3.defaults,
            "max_position_embeddings": 163840,
            "index_topk": 2048,
            "index_head_dim": 128,
            "index_n_heads": 64,
        },
        keys=(
            *(key for key in _V3.keys if key.gguf != "leading_dense_block_count"),
            *INDEXER_KEYS,
        ),
        more_keys=_keys,
        sizes=_sizes,
        tensors=_tensors,
        dense=behind_dense(),
        ignored=_V3.ignored | {"first_k_dense_replace", "topk_group", "head_dim", "mlp_bias", "layer_types"},
    ),
)
