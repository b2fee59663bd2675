"""The families that are built in."""

from __future__ import annotations

from collab_plugin.checkpoint.families.deepseek_v2 import DEEPSEEK_V2
from collab_plugin.checkpoint.families.deepseek_v3 import DEEPSEEK_V3
from collab_plugin.checkpoint.families.deepseek_v32 import DEEPSEEK_V32
from collab_plugin.checkpoint.families.glm4_moe_lite import GLM4_MOE_LITE
from collab_plugin.checkpoint.families.gpt_oss import GPT_OSS
from collab_plugin.checkpoint.families.kimi import KIMI_K25
from collab_plugin.checkpoint.families.mixtral import MIXTRAL
from collab_plugin.checkpoint.families.olmoe import OLMOE
from collab_plugin.checkpoint.families.qwen2moe import QWEN2_MOE
from collab_plugin.checkpoint.families.qwen3moe import QWEN3_MOE
from collab_plugin.checkpoint.families.qwen3next import QWEN3_NEXT
from collab_plugin.checkpoint.families.qwen35moe import QWEN35_MOE
from collab_plugin.checkpoint.families.served_by_vllm import GLM4_MOE

FAMILIES = (
    QWEN3_MOE, QWEN3_NEXT, QWEN35_MOE, DEEPSEEK_V3, QWEN2_MOE, OLMOE, MIXTRAL, DEEPSEEK_V2, DEEPSEEK_V32, KIMI_K25,
    GLM4_MOE_LITE, GLM4_MOE, GPT_OSS,
)  # fmt: skip
