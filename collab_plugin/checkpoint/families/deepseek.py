"""DeepSeek-V3 and what shares its class: MLA, sigmoid router with bias and groups, shared experts, MTP."""

from __future__ import annotations

from gguf import MODEL_ARCH, ExpertGatingFuncType

from collab_plugin.checkpoint.families.family import DENSE, EXPERTS, NORMS, Config, Family, common_keys, f32, flag, u32
from collab_plugin.formats.gguf_values import MetaValue


def _keys(c: Config) -> dict[str, MetaValue]:
    rank, rope = c.integer("kv_lora_rank"), c.integer("qk_rope_head_dim")
    sigmoid = c.get("scoring_func", "sigmoid" if c.get("topk_method", "noaux_tc") == "noaux_tc" else "softmax")
    gating = ExpertGatingFuncType.SIGMOID if sigmoid == "sigmoid" else ExpertGatingFuncType.SOFTMAX
    keys = common_keys(c) | {
        # The absorbed form is one key-value head of the latent's width (conversion/deepseek.py:338-361).
        "attention.head_count_kv": u32(1),
        "attention.kv_lora_rank": u32(rank),
        "attention.key_length": u32(rank + rope),
        "attention.value_length": u32(rank),
        "attention.key_length_mla": u32(c.integer("qk_nope_head_dim") + rope),
        "attention.value_length_mla": u32(c.integer("v_head_dim")),
        "rope.dimension_count": u32(rope),
        "leading_dense_block_count": u32(c.integer("first_k_dense_replace", 0)),
        "expert_count": u32(c.integer("n_routed_experts")),
        "expert_shared_count": u32(c.integer("n_shared_experts", 0)),
        "expert_weights_scale": f32(c.number("routed_scaling_factor", 1.0)),
        "expert_weights_norm": flag(bool(c.get("norm_topk_prob", False))),
        "expert_gating_func": u32(int(gating)),
    }
    if c.get("q_lora_rank") is not None:
        keys["attention.q_lora_rank"] = u32(c.integer("q_lora_rank"))
    if c.integer("n_group", 1) > 1:
        keys["expert_group_count"] = u32(c.integer("n_group"))
        keys["expert_group_used_count"] = u32(c.integer("topk_group"))
    return keys


def _parts(c: Config, dense: bool) -> list[str]:
    queries = ("q",) if c.get("q_lora_rank") is None else ("q_a", "q_a_norm", "q_b")
    attention = [f"attn_{part}.weight" for part in (*queries, "kv_a_mqa", "kv_a_norm", "k_b", "v_b", "output")]
    if dense:
        return [*NORMS, *attention, *DENSE]
    experts = list(EXPERTS)
    if c.get("topk_method", "noaux_tc") == "noaux_tc":
        experts.append("exp_probs_b.bias")
    if c.integer("n_shared_experts", 0):
        experts += [f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")]
    return [*NORMS, *attention, *experts]


DEEPSEEK_V3 = Family(("DeepseekV3ForCausalLM",), MODEL_ARCH.DEEPSEEK2, "n_routed_experts", _keys, _parts, mla=True)
