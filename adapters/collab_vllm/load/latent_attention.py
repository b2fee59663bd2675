"""Multi-head latent attention on processors, whose kernels in vLLM 0.32 have two limits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def around_latent_attention(model: Path | str) -> dict[str, Any]:
    """Options of `vllm.LLM` for the folder ``model``; may set VLLM_MLA_DISABLE, so ask before the engine is made.

    The rotary kernel is wrong for interleaved 3-D queries, and the attention kernel is made for a single size. Without
    the latter vLLM runs the unabsorbed form, which computes the same (docs/vllm.md).
    """
    from vllm.platforms import current_platform

    config = json.loads((Path(model) / "config.json").read_text("utf-8"))
    if "kv_lora_rank" not in config or not current_platform.is_cpu():
        return {}
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

    if config["kv_lora_rank"] + config["qk_rope_head_dim"] not in CPUMLABackend.get_supported_head_sizes():
        os.environ["VLLM_MLA_DISABLE"] = "1"
    # Where the processor has AMX, vLLM takes kernels for bfloat16 alone, whatever the weights are.
    return {"attention_backend": "CPU_MLA", "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]}}
