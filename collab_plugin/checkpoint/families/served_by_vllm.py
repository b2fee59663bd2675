"""Families whose checkpoints vLLM prunes as it loads them. Their folders are not turned into GGUF here."""

from __future__ import annotations

from collab_plugin.checkpoint.families.family import Family

_BIASED = ("gate.weight", "gate.e_score_correction_bias")

GLM4_MOE = Family(
    name="glm4-moe",
    classes=("Glm4MoeForCausalLM",),
    architecture="glm4moe",
    expert_counts=("n_routed_experts",),
    router=_BIASED,
)
