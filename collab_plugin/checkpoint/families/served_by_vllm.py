"""Families whose checkpoints vLLM prunes as it loads them. Their folders are not turned into GGUF here."""

from __future__ import annotations

from collab_plugin.checkpoint.families.family import Family

_BIASED = ("gate.weight", "gate.e_score_correction_bias")

DEEPSEEK_V2 = Family(
    name="deepseek-v2",
    classes=("DeepseekV2ForCausalLM",),
    architecture="deepseek2",
    expert_counts=("n_routed_experts",),
    router=_BIASED,
    interleaved_rope=True,
)
GLM4_MOE = Family(
    name="glm4-moe",
    classes=("Glm4MoeForCausalLM",),
    architecture="glm4moe",
    expert_counts=("n_routed_experts",),
    router=_BIASED,
)
