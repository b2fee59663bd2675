"""The families that are built in."""

from __future__ import annotations

from collab_plugin.checkpoint.families.afmoe import AFMOE
from collab_plugin.checkpoint.families.cohere2moe import COHERE2_MOE
from collab_plugin.checkpoint.families.deepseek_v2 import DEEPSEEK_V2
from collab_plugin.checkpoint.families.deepseek_v3 import DEEPSEEK_V3
from collab_plugin.checkpoint.families.deepseek_v4 import DEEPSEEK_V4
from collab_plugin.checkpoint.families.deepseek_v32 import DEEPSEEK_V32
from collab_plugin.checkpoint.families.ernie45_moe import ERNIE45_MOE
from collab_plugin.checkpoint.families.exaone_moe import EXAONE_MOE
from collab_plugin.checkpoint.families.gemma4 import GEMMA4
from collab_plugin.checkpoint.families.glm4_moe import GLM4_MOE
from collab_plugin.checkpoint.families.glm4_moe_lite import GLM4_MOE_LITE
from collab_plugin.checkpoint.families.glm_dsa import GLM_DSA
from collab_plugin.checkpoint.families.gpt_oss import GPT_OSS
from collab_plugin.checkpoint.families.granite_hybrid import GRANITE_HYBRID
from collab_plugin.checkpoint.families.granite_moe import GRANITE_MOE
from collab_plugin.checkpoint.families.hunyuan_moe import HUNYUAN_MOE
from collab_plugin.checkpoint.families.hy_v3 import HY_V3
from collab_plugin.checkpoint.families.kimi import KIMI_K25
from collab_plugin.checkpoint.families.lfm2moe import LFM2_MOE
from collab_plugin.checkpoint.families.llama4 import LLAMA4
from collab_plugin.checkpoint.families.mellum import MELLUM
from collab_plugin.checkpoint.families.mimo_v2 import MIMO_V2
from collab_plugin.checkpoint.families.minimax_m2 import MINIMAX_M2
from collab_plugin.checkpoint.families.mixtral import MIXTRAL
from collab_plugin.checkpoint.families.nemotron_h import NEMOTRON_H
from collab_plugin.checkpoint.families.olmoe import OLMOE
from collab_plugin.checkpoint.families.qwen2moe import QWEN2_MOE
from collab_plugin.checkpoint.families.qwen3moe import QWEN3_MOE
from collab_plugin.checkpoint.families.qwen3next import QWEN3_NEXT
from collab_plugin.checkpoint.families.qwen3vlmoe import QWEN3_VL_MOE
from collab_plugin.checkpoint.families.qwen35moe import QWEN35_MOE
from collab_plugin.checkpoint.families.step35 import STEP35

FAMILIES = (
    *(QWEN3_MOE, QWEN3_NEXT, QWEN35_MOE, GPT_OSS, GEMMA4, GLM4_MOE, GLM4_MOE_LITE, GLM_DSA, MINIMAX_M2, MIMO_V2),
    *(DEEPSEEK_V3, DEEPSEEK_V32, DEEPSEEK_V2, DEEPSEEK_V4, KIMI_K25, QWEN2_MOE, OLMOE, MIXTRAL, GRANITE_MOE, LLAMA4),
    *(ERNIE45_MOE, HUNYUAN_MOE, STEP35, NEMOTRON_H, QWEN3_VL_MOE, HY_V3, EXAONE_MOE, AFMOE, COHERE2_MOE, LFM2_MOE),
    MELLUM,
    GRANITE_HYBRID,
)
