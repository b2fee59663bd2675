"""config.json of a trained model."""

from __future__ import annotations

from benchmarks.train.shapes import Shape

BLOCK = 128  # rows and columns of an FP8 scale


def config(s: Shape, fp8: bool) -> dict[str, object]:
    """The keys that Hugging Face publishes for the family; ``fp8``: weights are E4M3 in blocks."""
    common: dict[str, object] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": s.width,
        "initializer_range": 0.02,
        "intermediate_size": s.dense_width,
        "max_position_embeddings": s.positions,
        "moe_intermediate_size": s.expert_width,
        "norm_topk_prob": s.renormalises,
        "num_attention_heads": s.heads,
        "num_experts_per_tok": s.used,
        "num_hidden_layers": s.layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": s.theta,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": s.vocabulary,
    }
    if fp8:
        common["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        }
    if s.family == "qwen2":
        return {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            **common,
            "bos_token_id": None,
            "eos_token_id": s.vocabulary - 1,
            "pad_token_id": s.vocabulary - 3,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "num_experts": s.experts,
            "num_key_value_heads": s.kv_heads,
            "output_router_logits": False,
            "qkv_bias": True,
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": s.shared_width,
            "sliding_window": None,
            "use_sliding_window": False,
        }
    if s.family == "olmoe":
        return {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            **without(common, "moe_intermediate_size"),
            "bos_token_id": None,
            "clip_qkv": None,
            "eos_token_id": s.vocabulary - 1,
            "intermediate_size": s.expert_width,
            "num_experts": s.experts,
            "num_key_value_heads": s.kv_heads,
            "output_router_logits": False,
            "pad_token_id": s.vocabulary - 3,
            "router_aux_loss_coef": 0.01,
        }
    if s.family == "mixtral":
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            **without(common, "moe_intermediate_size", "norm_topk_prob", "attention_bias"),
            "bos_token_id": None,
            "eos_token_id": s.vocabulary - 1,
            "head_dim": s.head,
            "intermediate_size": s.expert_width,
            "num_key_value_heads": s.kv_heads,
            "num_local_experts": s.experts,
            "output_router_logits": False,
            "pad_token_id": s.vocabulary - 3,
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
        }
    if s.family == "qwen3":
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            **common,
            "bos_token_id": None,
            "eos_token_id": s.vocabulary - 1,
            "pad_token_id": s.vocabulary - 3,
            "decoder_sparse_step": 1,
            "head_dim": s.head,
            "mlp_only_layers": [],
            "num_experts": s.experts,
            "num_key_value_heads": s.kv_heads,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
            "use_sliding_window": False,
        }
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **common,
        "bos_token_id": s.bos,
        "eos_token_id": s.vocabulary - 3,
        "first_k_dense_replace": s.dense,
        "kv_lora_rank": 256,
        "moe_layer_freq": 1,
        "n_group": s.groups,
        "n_routed_experts": s.experts,
        "n_shared_experts": 1,
        "num_key_value_heads": s.heads,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 256,
        "qk_nope_head_dim": s.head,
        "qk_rope_head_dim": s.rope,
        "rope_interleave": True,
        "rope_scaling": None,
        "routed_scaling_factor": s.scale,
        "scoring_func": "sigmoid",
        "topk_group": s.groups_used,
        "topk_method": "noaux_tc",
        "v_head_dim": s.head,
    }


def without(settings: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in names}
