"""What a tensor is for, read from its GGUF name."""

from __future__ import annotations

import re
from enum import StrEnum


class Role(StrEnum):
    """Coarse purpose of a tensor; plans and reports speak in these."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    ATTENTION = "attention"
    ROUTER = "router"
    ROUTER_BIAS = "router-bias"
    EXPERT = "expert"
    SHARED_EXPERT = "shared-expert"
    FFN = "ffn"
    NORM = "norm"
    OTHER = "other"


# First match wins. Names: llama.cpp src/llama-arch.cpp:452-493 (0c1e57098).
_PATTERNS: tuple[tuple[re.Pattern[str], Role], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"^token_embd\.", Role.EMBEDDING),
        (r"^output\.", Role.OUTPUT),
        (r"_norm(_\d+)?\.(weight|bias)$", Role.NORM),
        (r"^blk\.\d+\.ffn_(gate|up|down|gate_up)_(ch)?exps\.", Role.EXPERT),
        (r"^blk\.\d+\.ffn_gate_inp\.(weight|bias)$", Role.ROUTER),
        (r"^blk\.\d+\.exp_probs_b(_vl)?(\.bias)?$", Role.ROUTER_BIAS),
        (r"^blk\.\d+\.ffn_(gate|up|down|gate_up)_shexp\.", Role.SHARED_EXPERT),
        (r"^blk\.\d+\.ffn_(gate|up|down)\.", Role.FFN),
        (r"^blk\.\d+\.attn_", Role.ATTENTION),
    )
)
_LAYER = re.compile(r"^blk\.(\d+)\.")


def role_of(name: str) -> Role:
    """Return the role of the tensor called ``name`` (a GGUF name)."""
    return next((role for pattern, role in _PATTERNS if pattern.search(name)), Role.OTHER)


def layer_of(name: str) -> int | None:
    """Return the block number in ``name``, or None outside the blocks."""
    found = _LAYER.match(name)
    return int(found.group(1)) if found else None


def is_hash_table(name: str) -> bool:
    """Whether the tensor gives each token its experts (hash-routed layers of DeepSeek-V4)."""
    return ".ffn_gate_tid2eid." in name
