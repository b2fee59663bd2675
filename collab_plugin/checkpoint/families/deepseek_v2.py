"""DeepSeek-V2 where it has no groups (V2-Lite): as V3 with a softmax router that never renormalises."""

from __future__ import annotations

from dataclasses import replace

from collab_plugin.checkpoint.families.deepseek_v3 import DEEPSEEK_V3
from collab_plugin.checkpoint.families.family import Family

_V3 = DEEPSEEK_V3.conversion
assert _V3 is not None

DEEPSEEK_V2 = Family(
    name="deepseek-v2",
    classes=("DeepseekV2ForCausalLM",),
    architecture="deepseek2",
    expert_counts=("n_routed_experts",),
    router=DEEPSEEK_V3.router,
    interleaved_rope=True,
    decoder=DEEPSEEK_V3.decoder,
    remark="without groups of experts (V2-Lite): llama.cpp ranks groups by their best two experts, V2 by the best",
    conversion=replace(
        _V3,
        config_class="DeepseekV2Config",
        defaults={
            **{key: _V3.defaults[key] for key in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim")},
            **{key: _V3.defaults[key] for key in ("qk_rope_head_dim", "hidden_act", "attention_bias")},
            **{key: _V3.defaults[key] for key in ("tie_word_embeddings", "rms_norm_eps", "rope_theta")},
            "max_position_embeddings": 2048,
            "intermediate_size": 11008,
            "moe_intermediate_size": 1407,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "topk_method": "greedy",
            # Not transformers' keys: its class computes just this, and vLLM's reads them.
            "scoring_func": "softmax",
            "moe_layer_freq": 1,
        },
        fixed={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "norm_topk_prob": (False,),  # V2's own code does not scale weights that it renormalises
            "scoring_func": ("softmax",),
            "topk_method": ("greedy",),  # with groups V2 ranks a group by its best expert, llama.cpp by its best two
            "moe_layer_freq": (1,),
        },
        prediction=None,
        ignored=frozenset(("num_key_value_heads", "qk_head_dim", "head_dim", "mlp_bias", "topk_group")),
    ),
)
