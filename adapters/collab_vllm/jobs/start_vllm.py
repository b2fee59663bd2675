"""vLLM's engine in this process, as all jobs want it."""

from __future__ import annotations

from typing import Any


def start_vllm(model: str, *, ctx: int, stats: bool = False, **options: Any) -> Any:
    """Return a `vllm.LLM` of the folder ``model`` with room for ``ctx`` tokens, in float32 on processors.

    With ``stats`` its routers are counted, which our load format does.
    """
    from vllm import LLM
    from vllm.platforms import current_platform

    from collab_vllm.load.latent_attention import around_latent_attention

    if stats:
        import collab_vllm

        collab_vllm.register()
        options |= {"load_format": "collab", "model_loader_extra_config": {"stats": True}}
    return LLM(
        model,
        dtype="float32" if current_platform.is_cpu() else "auto",
        enforce_eager=True,
        enable_prefix_caching=False,  # what is cached is not run again: neither routed nor scored
        max_model_len=ctx,
        **around_latent_attention(model),
        **options,
    )
