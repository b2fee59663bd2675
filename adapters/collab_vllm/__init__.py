"""vLLM: a load format that applies a plan to the original safetensors checkpoint."""

from __future__ import annotations


def register() -> None:
    """Add the load format ``collab``; entry point of ``vllm.general_plugins``.

    vLLM calls it in every process it starts, and perhaps more than once in each.
    """
    from collab_vllm.load.model_loader import register_load_format
    from collab_vllm.load.startup import check_at_startup

    register_load_format()
    check_at_startup()
