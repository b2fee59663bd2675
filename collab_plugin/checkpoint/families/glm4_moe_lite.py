"""GLM-4.7-Flash: DeepSeek-V3's decoder with other defaults."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.deepseek_v3 import DEEPSEEK_V3, latent_keys
from collab_plugin.checkpoint.families.family import Family
from collab_plugin.checkpoint.families.gguf_keys import u32
from collab_plugin.checkpoint.families.glm4_moe import GLM_TOKENS
from collab_plugin.checkpoint.families.layer_kinds import behind_dense, leading_dense
from collab_plugin.formats.gguf_values import MetaValue

_V3 = DEEPSEEK_V3.conversion
assert _V3 is not None


def _keys(c: Config) -> dict[str, MetaValue]:
    return latent_keys(c) | {"leading_dense_block_count": u32(leading_dense(c))}


GLM4_MOE_LITE = Family(
    name="glm4-moe-lite",
    classes=("Glm4MoeLiteForCausalLM",),
    architecture="deepseek2",
    expert_counts=("n_routed_experts", "num_local_experts"),
    router=DEEPSEEK_V3.router,
    interleaved_rope=True,
    decoder=DEEPSEEK_V3.decoder,
    vllm=False,
    remark="GLM-4.7-Flash",
    conversion=replace(
        _V3,
        config_class="Glm4MoeLiteConfig",
        defaults={
            **_V3.defaults,
            "max_position_embeddings": 202752,
            "intermediate_size": 10240,
            "moe_intermediate_size": 1536,
            "rms_norm_eps": 1e-5,
            "num_experts_per_tok": 4,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.8,
            # Not transformers' keys.
            "first_k_dense_replace": 1,
            "num_nextn_predict_layers": 1,
        },
        keys=tuple(key for key in _V3.keys if key.gguf != "leading_dense_block_count"),
        more_keys=_keys,
        dense=behind_dense(),
        special_tokens=GLM_TOKENS,
        ignored=_V3.ignored | {"first_k_dense_replace", "topk_group", "head_dim"},
    ),
)
