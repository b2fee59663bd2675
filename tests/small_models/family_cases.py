"""Tiny checkpoints, one or more of each family: what transformers is asked to make.

A case has "config": transformers' class, and "keys" of it; "extra": keys of config.json that transformers does not
write, and "left_out": those taken out of it; "dense": first layers without experts, or "sparse": those with experts;
"fused": experts are stored in one tensor, "transposed": and turned; "mxfp4": experts are stored in four bits, which
llama.cpp multiplies with activations of eight, hence "far", the error that is allowed; "packed": all is stored as such
models are published, and compared with floats as F32; "whole": not pruned; "tokenizer": of another kind than Qwen3's;
"kept": experts of a pruned folder; "notes": what opening the folder says; "unlike": keys that llama.cpp's converter
writes otherwise; "why_not": what stops that converter.
"""

from __future__ import annotations

from typing import Any

EXPERTS, KEPT, USED, VOCABULARY = 8, (3, 1, 2, 7, 4, 6), 3, 3072

_GROUPED: dict[str, Any] = {"num_experts": EXPERTS, "moe_intermediate_size": 32}
_MLA: dict[str, Any] = {
    "kv_lora_rank": 64, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1,
}  # fmt: skip
_QWEN2: dict[str, Any] = {**_GROUPED, "shared_expert_intermediate_size": 48, "norm_topk_prob": False}
_LINEAR: dict[str, Any] = {
    **_GROUPED, "shared_expert_intermediate_size": 48, "head_dim": 32, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
_VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 128,
    "num_position_embeddings": 16,
}  # fmt: skip
_GPT_OSS: dict[str, Any] = {
    "num_local_experts": EXPERTS, "head_dim": 32, "intermediate_size": 64, "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "original_max_position_embeddings": 64, "truncate": True},
}  # fmt: skip

_GLM4: dict[str, Any] = {
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "moe_intermediate_size": 32, "head_dim": 32,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "attention_bias": True, "use_qk_norm": True,
}  # fmt: skip
_DSA: dict[str, Any] = {
    **_MLA, "n_group": 1, "topk_group": 1, "index_n_heads": 2, "index_head_dim": 128, "index_topk": 128,
    "indexer_types": ["full", "full", "shared"],
}  # fmt: skip
_GEMMA4: dict[str, Any] = {
    **_GROUPED, "top_k_experts": 4, "enable_moe_block": True, "head_dim": 32, "global_head_dim": 64,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 32, "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "final_logit_softcapping": 30.0,
}  # fmt: skip
_GRANITE: dict[str, Any] = {
    "num_local_experts": EXPERTS, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
    "attention_multiplier": 0.2, "logits_scaling": 6.0,
}  # fmt: skip

_LLAMA4: dict[str, Any] = {  # llama.cpp needs layers of both kinds: the fourth attends to everything
    "num_local_experts": EXPERTS, "head_dim": 32, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 1,
    "num_hidden_layers": 4,
}  # fmt: skip

_V4: dict[str, Any] = {
            "n_routed_experts": EXPERTS, "moe_intermediate_size": 32, "head_dim": 64, "q_lora_rank": 32,
            "num_key_value_heads": 1, "partial_rotary_factor": 0.25, "o_groups": 2, "o_lora_rank": 16,
            "index_n_heads": 4, "index_head_dim": 64, "index_topk": 128, "sliding_window": 128,
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
            "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
        }  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "qwen3-moe": {"config": "Qwen3MoeConfig", "keys": {**_GROUPED, "head_dim": 32, "norm_topk_prob": True}},
    "qwen3-next": {"config": "Qwen3NextConfig", "keys": _LINEAR},
    "qwen3.5-moe": {
        "config": "Qwen3_5MoeConfig", "keys": {"text_config": _LINEAR, "vision_config": _VISION}, "fused": True,
        "notes": ("the vision tower dropped: 21 tensors model.visual.*",),
    },
    "gpt-oss": {"config": "GptOssConfig", "keys": _GPT_OSS},
    "gpt-oss-mxfp4": {"config": "GptOssConfig", "keys": _GPT_OSS, "mxfp4": True, "far": 5e-3},
    "gemma4": {"config": "Gemma4TextConfig", "keys": _GEMMA4, "tokenizer": "marked"},
    "glm4-moe": {"config": "Glm4MoeConfig", "keys": _GLM4, "dense": 1},
    "glm-dsa": {  # of tokens to look at as for DeepSeek-V3.2 below
        "config": "GlmMoeDsaConfig", "keys": _DSA, "dense": 1, "unlike": ("glm-dsa.expert_gating_func",),
    },
    "minimax-m2": {
        "config": "MiniMaxM2Config", "keys": {"num_local_experts": EXPERTS, "head_dim": 32, "rotary_dim": 16},
        "unlike": ("minimax-m2.expert_gating_func",),
    },
    "mimo-v2": {
        "config": "MiMoV2FlashConfig", "dense": 1,
        "keys": {"n_routed_experts": EXPERTS, "moe_intermediate_size": 32, "head_dim": 32, "v_head_dim": 16,
                 "sliding_window": 32},
        "why_not": "KeyError: 'swa_head_dim'",
    },
    "mimo-v2-published": {  # keys as the published models have them
        "config": "MiMoV2FlashConfig", "dense": 1,
        "keys": {"n_routed_experts": EXPERTS, "moe_intermediate_size": 32, "head_dim": 32, "v_head_dim": 16,
                 "sliding_window": 32},
        "left_out": ["layer_types", "mlp_layer_types", "rope_parameters", "rms_norm_eps"],
        "extra": {
            "swa_head_dim": 32, "swa_v_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
            "hybrid_layer_pattern": [0, 1, 1], "moe_layer_freq": [0, 1, 1], "layernorm_epsilon": 1e-5,
            "rope_theta": 5000000.0, "swa_rope_theta": 10000.0, "partial_rotary_factor": 0.334,
            "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        },
        "why_not": "KeyError: 'partial_rotary_factor'",  # of transformers 5's keys
    },
    "granite-moe": {"config": "GraniteMoeConfig", "keys": _GRANITE},
    "granite-hybrid": {
        "config": "GraniteMoeHybridConfig",
        "keys": {
            **_GRANITE, "shared_intermediate_size": 48, "mamba_n_heads": 8, "mamba_d_head": 32,
            "mamba_d_state": 16, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        "extra": {"layer_types": ["mamba", "attention", "mamba"]},  # as published
        "unlike": ("granitehybrid.context_length",),  # the converter's is a million, whatever config.json says
    },
    "granite-moe-shared": {"config": "GraniteMoeSharedConfig", "keys": _GRANITE | {"shared_intermediate_size": 48}},
    "llama4": {"config": "Llama4TextConfig", "keys": _LLAMA4},
    "qwen2-moe": {"config": "Qwen2MoeConfig", "keys": _QWEN2},
    "qwen2-moe-fused": {"config": "Qwen2MoeConfig", "keys": _QWEN2, "fused": True},
    "olmoe": {
        "config": "OlmoeConfig",
        "keys": {"num_experts": EXPERTS, "num_key_value_heads": 4, "norm_topk_prob": False},
    },
    "mixtral": {"config": "MixtralConfig", "keys": {"num_local_experts": EXPERTS, "head_dim": 48}},
    "deepseek-v3": {"config": "DeepseekV3Config", "keys": _MLA, "dense": 1, "unlike": ("deepseek2.expert_gating_func",),
        "kept": (0, 2, 5, 7)},  # two of each group
}  # fmt: skip
CASES |= {
    "deepseek-v2": {
        "config": "DeepseekV2Config", "dense": 1, "kept": (0, 2, 5, 7), "unlike": (
            *("deepseek2.expert_gating_func", "deepseek2.expert_group_count", "deepseek2.expert_group_used_count"),
            "deepseek2.expert_weights_norm",
        ),
        "keys": {**_MLA, "n_group": 1, "topk_method": "greedy", "norm_topk_prob": False, "head_dim": 16},
    },
    # As many tokens as there are may be looked at: which ones are, llama.cpp and transformers choose otherwise.
    "deepseek-v3.2": {
        "config": "DeepseekV32Config", "dense": 1, "kept": (0, 2, 5, 7),
        "keys": {**_MLA, "index_topk": 128, "index_head_dim": 64, "index_n_heads": 4,
                 "mlp_layer_types": ["dense", "sparse", "sparse"]},
        "unlike": ("deepseek32.expert_gating_func",),
    },
    "deepseek-v4": {
        "config": "DeepseekV4Config", "keys": _V4,
        "no_folder": "written as GGUF only", "why_not": "KeyError: 'num_hash_layers'",
    },
    "deepseek-v4-published": {
        "config": "DeepseekV4Config", "packed": "deepseek-v4",
        "keys": _V4, "left_out": ["layer_types", "mlp_layer_types", "compress_rates", "rope_parameters"],
        "extra": {
            "compress_ratios": [0, 4, 128], "num_hash_layers": 1, "qk_rope_head_dim": 16, "rope_theta": 10000.0,
            "compress_rope_theta": 160000.0, "expert_dtype": "fp4", "topk_method": "noaux_tc",
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0",
                                    "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        },
        "no_folder": "written as GGUF only", "unlike": ("types.BF16-is-Q8_0",),
    },
    "kimi-k2.5": {
        "config": "Kimi_K25Config", "dense": 1, "packed": "kimi-k2.5", "tokenizer": "tiktoken",
        "keys": {
            "text_config": {**_MLA, "n_group": 1, "model_type": "deepseek_v3"},
            "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                              "intermediate_size": 32, "pos_emb_height": 4, "pos_emb_width": 4},
            "projection_hidden_size": 32, "tie_word_embeddings": False,
        },
        "extra": {
            "architectures": ["KimiK25ForConditionalGeneration"],
            "quantization_config": {
                "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}}},
                "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|down)_proj.*"],
            },
        },
        "notes": (
            "what brings images to the decoder dropped: 6 tensors mm_projector.*",
            "the vision tower dropped: 17 tensors vision_tower.*",
        ),
        # The converter reads tiktoken by code of the model only: it was given another tokenizer.
        "unlike": (
            *("deepseek2.expert_gating_func", "deepseek2.expert_group_count", "deepseek2.expert_group_used_count"),
            *("tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.merges"),
            *("tokenizer.ggml.padding_token_id", "tokenizer.ggml.pre", "tokenizer.ggml.token_type"),
            *("tokenizer.ggml.tokens", "types.Q4_0-is-F32"),
        ),
    },
    "ernie4.5-moe": {
        "config": "Ernie4_5_MoeConfig", "dense": 1,
        "keys": {"moe_num_experts": EXPERTS, "moe_k": 4, "moe_intermediate_size": 32, "moe_num_shared_experts": 2},
        "unlike": (
            *("ernie4_5-moe.attention.key_length", "ernie4_5-moe.attention.value_length"),
            *("ernie4_5-moe.expert_shared_feed_forward_length", "ernie4_5-moe.rope.dimension_count"),
        ),
    },
    "glm4-moe-lite": {
        "config": "Glm4MoeLiteConfig", "dense": 1,
        "keys": {**_MLA, "n_group": 1, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        "unlike": (
            "deepseek2.expert_gating_func", "deepseek2.expert_group_count", "deepseek2.expert_group_used_count",
        ),
    },
}  # fmt: skip


_LAYERS3 = ["full_attention", "sliding_attention", "sliding_attention"]
CASES |= {
    "hunyuan-moe": {
        "config": "HunYuanMoEV1Config",
        "keys": {"num_experts": EXPERTS, "moe_topk": 4, "intermediate_size": 32, "num_attention_heads": 1,
                 "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": 32768,
                 "rope_parameters": {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0, "rope_theta": 10000.0}},
        "extra": {"moe_topk": [4, 4, 4], "moe_intermediate_size": [32, 32, 32], "num_shared_expert": [1, 1, 1]},
    },
    "step-3.7": {
        "config": "Step3p7Config", "dense": 1,
        "keys": {
            "text_config": {
                "n_routed_experts": EXPERTS, "moe_intermediate_size": 32, "head_dim": 32, "share_expert_dim": 48,
                "sliding_window": 32, "num_sliding_attention_heads": 6, "moe_router_scaling_factor": 1.5,
                "layer_types": _LAYERS3, "mlp_layer_types": ["dense", "sparse", "sparse"],
                "rope_theta": [500000.0, 10000.0, 10000.0], "partial_rotary_factors": [0.5, 1.0, 1.0],
                "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 32.0, "original_max_position_embeddings": 64},
                "swiglu_limits": [None, 0.0, 0.5], "swiglu_limits_shared": [None, 0.4, 0.0],
            },
            "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
        },
        "extra": {  # as the published models have it, which the converter asks for
            "num_attention_groups": 2, "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 2},
            "moe_num_experts": EXPERTS, "moe_top_k": 4, "moe_layers_enum": "1,2", "norm_expert_weight": True,
            "partial_rotary_factors": [0.5, 1.0, 1.0], "rope_theta": [500000.0, 10000.0, 10000.0],
        },
        "notes": (
            "the vision tower dropped: 22 tensors vision_model.*",
            "what brings images to the decoder dropped: 1 tensors vit_large_projector.*",
        ),
    },
    "nemotron-h": {
        "config": "NemotronHConfig", "sparse": [1, 3],
        "keys": {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"], "head_dim": 32,
            "n_routed_experts": EXPERTS, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48,
            "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 2,
            "routed_scaling_factor": 2.5, "use_mamba_kernels": False,
        },
        "unlike": ("nemotron_h_moe.context_length",),  # the converter's is a million, whatever config.json says
    },
}  # fmt: skip

CASES |= {
    "qwen3-vl-moe": {
        "config": "Qwen3VLMoeConfig",
        "keys": {
            "text_config": {**_GROUPED, "head_dim": 32, "tie_word_embeddings": True,  # the outer key counts
                            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                "mrope_section": [6, 5, 5], "mrope_interleaved": True}},
            "vision_config": {**_VISION, "deepstack_visual_indexes": [0]},
        },
        "transposed": True, "notes": ("the vision tower dropped: 27 tensors model.visual.*",),
    },
    "hy-v3": {
        "config": "HYV3Config", "dense": 1,
        "keys": {**_GROUPED, "head_dim": 32, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    },
    "exaone-moe": {
        "config": "ExaoneMoeConfig", "dense": 1,
        "keys": {**_GROUPED, "head_dim": 32, "layer_types": _LAYERS3, "sliding_window": 32},
        "extra": {"scoring_func": "sigmoid"},
    },
    "afmoe": {
        "config": "AfmoeConfig", "dense": 1, "sparse": [1, 2, 3],
        "keys": {**_GROUPED, "head_dim": 32, "num_hidden_layers": 4, "sliding_window": 32, "route_scale": 1.5,
                 "mup_enabled": True},
        "extra": {"route_norm": True},
    },
    "cohere2-moe": {
        "config": "Cohere2MoeConfig", "dense": 1,
        "keys": {"num_experts": EXPERTS, "head_dim": 32, "layer_types": _LAYERS3, "sliding_window": 32,
                 "mlp_layer_types": ["dense", "sparse", "sparse"], "num_shared_experts": 2,
                 "expert_selection_fn": "sigmoid", "prefix_dense_intermediate_size": 64, "tie_word_embeddings": True},
    },
    "cohere2-moe-softmax": {
        "config": "Cohere2MoeConfig",
        "keys": {"num_experts": EXPERTS, "head_dim": 32, "layer_types": _LAYERS3, "sliding_window": 32,
                 "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "prefix_dense_intermediate_size": 64},
    },
    "lfm2-moe": {
        "config": "Lfm2MoeConfig", "dense": 1,
        "keys": {**_GROUPED, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1,
                 "tie_word_embeddings": True},
    },
    "mellum": {
        "config": "MellumConfig",
        "keys": {**_GROUPED, "head_dim": 32, "sliding_window": 32, "layer_types": _LAYERS3,
                 "rope_parameters": {
                     "full_attention": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                        "original_max_position_embeddings": 64},
                     "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    },
}  # fmt: skip

# With transformers' own values for keys that config.json leaves out.
_LEFT_OUT = ["norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group", "rms_norm_eps", "rope_parameters"]
_GROUPS = {"n_group": 8, "topk_group": 4, "n_routed_experts": 16}
WHOLE: dict[str, dict[str, Any]] = {
    "deepseek-v3-left-out": {
        "config": "DeepseekV3Config", "keys": _MLA | _GROUPS, "dense": 1, "left_out": _LEFT_OUT, "whole": True,
    },
    "qwen2-moe-left-out": {
        "config": "Qwen2MoeConfig", "keys": _QWEN2, "whole": True,
        "left_out": ["norm_topk_prob", "qkv_bias", "rms_norm_eps", "rope_parameters", "hidden_act"],
    },
    "mixtral-left-out": {
        "config": "MixtralConfig", "keys": {"num_local_experts": EXPERTS, "head_dim": 48}, "whole": True,
        "left_out": ["rope_parameters", "rms_norm_eps"],
    },
}  # fmt: skip
