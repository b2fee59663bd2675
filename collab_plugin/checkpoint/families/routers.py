"""How each Mixture-of-Experts architecture of llama.cpp turns router logits into weights.

Facts of src/models/*.cpp at the pinned llama.cpp (0c1e57098): what the graph does whatever the metadata says, and
what it takes where a key is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gating = Literal["softmax", "sigmoid", "softmax-after-top-k"]


@dataclass(frozen=True)
class Router:
    """``renormalises``: whether weights are divided by their sum over the chosen experts; None where the key
    expert_weights_norm says so. ``gating``: where expert_gating_func is absent."""

    renormalises: bool | None = None
    gating: Gating = "softmax"


_ALWAYS = (
    *("arctic", "dbrx", "ernie4_5-moe", "gemma4", "granite_swa", "granitehybrid", "granitemoe", "grok", "grovemoe"),
    *("hunyuan-moe", "kimi-linear", "lfm2moe", "llama", "maple", "mellum", "minimax-01", "minimax-m2", "mistral3"),
    *("phimoe", "qwen35moe", "qwen3moe", "qwen3next", "qwen3vlmoe", "qwen4exp", "rnd1", "smallthinker"),
)
_NEVER = ("deepseek", "jamba", "llada-moe", "olmoe", "qwen2moe")
_SIGMOID = (*("afmoe", "cohere2moe", "glm-dsa", "glm4moe", "glm5-next", "hy_v3", "laguna", "nemotron_h_moe", "step35"),)
_ROUTERS = {
    **dict.fromkeys(_ALWAYS, Router(renormalises=True)),
    **dict.fromkeys(_NEVER, Router(renormalises=False)),
    **dict.fromkeys(_SIGMOID, Router(gating="sigmoid")),
    "gpt-oss": Router(renormalises=True, gating="softmax-after-top-k"),
    "llama4": Router(renormalises=False, gating="sigmoid"),
    "mimo2": Router(renormalises=True, gating="sigmoid"),
}

# Those whose graph multiplies what an expert's matrices give with the tensors `_exps.scale`; elsewhere llama.cpp loads
# them and does nothing. Not gemma4, whose scales are the model's own.
_SCALES_EXPERTS = frozenset(
    ("cohere2moe", "deepseek32", "dots3note", "glm-dsa", "hy_v3", "llama", "mellum", "mistral3", "nemotron_h",
     "nemotron_h_moe", "qwen35moe", "qwen3moe", "qwen3next", "qwen4exp")
)  # fmt: skip


def scales_experts(architecture: str) -> bool:
    """Whether llama.cpp heeds a scale beside each expert matrix, without which NVFP4 cannot be moved as it is."""
    return architecture in _SCALES_EXPERTS


def router_of(architecture: str) -> Router:
    """The router of a GGUF architecture; one that is not listed obeys its metadata and is softmax without it."""
    return _ROUTERS.get(architecture, Router())
